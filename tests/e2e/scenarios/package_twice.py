"""The program built again, in another folder, from nothing: the same bytes. Some minutes of two cores."""

import os
import shutil
import subprocess
import tempfile

import packages
from scenarios.package_files import sha256

SECONDS = 1800


def run(t):
    if subprocess.run(["cargo", "--version"], capture_output=True, check=False).returncode != 0:
        t.skip("all of it", "no cargo for this user")
        return
    with tempfile.TemporaryDirectory() as work:
        place = os.path.join(work, "a longer place", "larder")
        shutil.copytree(packages.TOP, place, symlinks=True, ignore=shutil.ignore_patterns("target", ".git"))
        env = {**os.environ, "TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8"}
        built = subprocess.run(["packaging/compile"], cwd=place, env=env, stdout=subprocess.PIPE, text=True, check=False)
        if t.check("built in another folder", built.returncode, 0):
            t.check("its bytes", sha256(built.stdout.strip()), sha256(t.larder))
