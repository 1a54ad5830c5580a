#!/usr/bin/env python3
"""Packages for the scenarios: this tree's version, and two made up around it.

    packages.py LARDER     build what is missing, and print the folder

The older one has another unit of the watch and another package.conf; the newer one another unit of the registries.
All have the same program. They are kept by the hash of all that made them.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLACE = os.path.join(TOP, "target/e2e-packages")
OLD, NEW = "0.0.9", "99.0"
# What a tree that rpm has not made has all the same.
BASE = "debian-tree-1-1.noarch.rpm"
PROVIDED = ("systemd = 252", "coreutils", "/bin/sh")
SOURCES = ("packaging", "units", "docs", "templates", "examples", "README.md", "CHANGELOG.md", "LICENSE", "Cargo.lock", "Cargo.toml")
# What cargo has to be asked for: some seconds, or the time that a lock takes.
PARTS = ("src", "examples", "templates", "Cargo.lock", "packaging/man", "packaging/sbom")
UNITS, CONFIG = "usr/lib/systemd/system", "etc/larder/package.conf"


def version():
    with open(os.path.join(TOP, "Cargo.toml"), encoding="utf-8") as file:
        return re.search(r'^version = "(.*)"', file.read(), flags=re.M)[1]


def deb(which):
    return f"larder_{which}_amd64.deb"


def rpm(which):
    return f"larder-{which}-1.x86_64.rpm"


def source(path):
    with open(os.path.join(TOP, path), encoding="utf-8") as file:
        return file.read()


def overlays():
    """What the made up versions have in the place of ours: path to text."""
    registry = source("units/larder-registry@.service")
    watch = source("units/larder-watch.service")
    settings = source("packaging/package.conf")
    return {
        OLD: {
            f"{UNITS}/larder-watch.service": watch.replace("RuntimeMaxSec=30min", "RuntimeMaxSec=20min"),
            CONFIG: settings.replace("# What removing", "# (An older text.) What removing"),
        },
        NEW: {f"{UNITS}/larder-registry@.service": registry.replace("LimitNOFILE=65536", "LimitNOFILE=131072")},
        version(): {},
    }


def fingerprint(sources, *paths):
    """Of all that something is made of."""
    digest = hashlib.sha256()
    paths = list(paths)
    for path in sources:
        path = os.path.join(TOP, path)
        paths += [path] if os.path.isfile(path) else [
            os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
        ]
    for path in sorted(paths):
        with open(path, "rb") as file:
            digest.update(path.encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:12]


def build(larder):
    """The folder of the three versions, each as .deb and .rpm."""
    os.makedirs(PLACE, exist_ok=True)
    with open(os.path.join(PLACE, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = os.path.join(PLACE, fingerprint(SOURCES, larder, __file__))
        parts = os.path.join(PLACE, "parts-" + fingerprint(PARTS))
        if os.path.isdir(folder):
            return folder
        for old in os.listdir(PLACE):
            if old not in ("lock", os.path.basename(parts)):
                shutil.rmtree(os.path.join(PLACE, old))
        part = folder + ".part"
        for which, files in overlays().items():
            with tempfile.TemporaryDirectory(dir=PLACE) as overlay:
                for path, text in files.items():
                    os.makedirs(os.path.dirname(os.path.join(overlay, path)), exist_ok=True)
                    with open(os.path.join(overlay, path), "w", encoding="utf-8") as file:
                        file.write(text)
                command = [os.path.join(TOP, "packaging/build"), "--larder", larder, "--version", which, "--out", part]
                command += ["--overlay", overlay, "--parts", parts]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        base(part)
        shutil.copytree(parts, os.path.join(part, "parts"))
        os.rename(part, folder)
        return folder


def base(folder):
    """The package that says what the tree has."""
    with tempfile.TemporaryDirectory() as work:
        lines = ["Name: debian-tree", "Version: 1", "Release: 1", "Summary: What is there", "License: none", "BuildArch: noarch"]
        lines += [f"Provides: {one}" for one in PROVIDED] + ["%description", "What is there.", "%files", ""]
        spec = os.path.join(work, "base.spec")
        with open(spec, "w", encoding="utf-8") as file:
            file.write("\n".join(lines))
        command = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}", "--define", f"_rpmdir {work}", spec]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.copyfile(os.path.join(work, "noarch", BASE), os.path.join(folder, BASE))


if __name__ == "__main__":
    print(build(os.path.abspath(sys.argv[1])))
