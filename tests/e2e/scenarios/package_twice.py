"""The program built again, in another folder, from nothing: the same bytes. Some minutes of two cores."""

import os
import shutil
import subprocess
import tempfile

import packages
from scenarios.package_files import sha256

SECONDS = 1800


def run(t):
    with tempfile.TemporaryDirectory() as work:
        place = os.path.join(work, "a longer place", "larder")
        shutil.copytree(packages.TOP, place, symlinks=True, ignore=shutil.ignore_patterns("target", ".git"))
        env = {**os.environ, "TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8"}
        for target in ("x86_64-unknown-linux-musl",):
            built = subprocess.run(
                ["packaging/compile", target], cwd=place, env=env, stdout=subprocess.PIPE, text=True, check=False
            )
            if t.check(f"{target}: built in another folder", built.returncode, 0):
                t.check(f"{target}: its bytes", sha256(built.stdout.strip()), sha256(t.larder))
