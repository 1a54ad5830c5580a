"""The packages of the other architecture: cross-built, clean, and their program run by an emulator."""

import os
import shutil
import subprocess
import tempfile

import packages
from machine import run as ask
from report import exits, has
from scenarios.package_files import lint

SECONDS = 1800
QEMU = "/usr/bin/qemu-aarch64-static"


def run(t):
    if not shutil.which("aarch64-linux-gnu-gcc") or not os.path.exists(QEMU):
        t.skip("all of it", "no gcc or emulator for arm64: tests/deps arm64")
        return
    if subprocess.run(["cargo", "--version"], capture_output=True, check=False).returncode != 0:
        t.skip("all of it", "no cargo for this user")
        return
    with tempfile.TemporaryDirectory() as work:
        built = subprocess.run(
            [os.path.join(packages.TOP, "packaging/build"), "--arch", "arm64", "--out", work],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if not t.check("built", (built.returncode, built.stdout if built.returncode else ""), (0, "")):
            return
        t.note(built.stdout)
        version = packages.version()
        deb, rpm = os.path.join(work, f"larder_{version}_arm64.deb"), os.path.join(work, f"larder-{version}-1.aarch64.rpm")
        lint(t, deb, rpm)
        tree = os.path.join(work, "tree")
        ask(["dpkg-deb", "--extract", deb, tree])
        # An emulator of before openat2: it works on the root of all files, and there alone.
        shutil.copyfile(QEMU, os.path.join(tree, "qemu"))
        os.chmod(os.path.join(tree, "qemu"), 0o755)
        os.makedirs(os.path.join(tree, "tmp"))
        larder = ["chroot", tree, "/qemu", "/usr/bin/larder"]
        example = "/usr/share/larder/examples/cache-and-client.yaml"
        t.check("version", ask([*larder, "--version"]).out, has(version))
        t.check("check", ask([*larder, "check", "--profile", example]), exits(0))
        with open(os.path.join(tree, "profile.yaml"), "w", encoding="utf-8") as file:
            file.write("version: 1\nupstreams: { docker.io: { port: 5000 } }\ncontainerd: { caches: [10.0.20.10] }\n")
        t.check("apply to a tree", ask([*larder, "apply", "--root", "/", "--profile", "/profile.yaml"]), exits(0))
        hosts = os.path.join(tree, "etc/containerd/certs.d/docker.io/hosts.toml")
        t.check("what it wrote", os.path.exists(hosts), True)
        t.check("plan after it", ask([*larder, "plan", "--root", "/", "--profile", "/profile.yaml"]), exits(0))
