#!/usr/bin/env python3
"""A registry's image as an archive, as `docker save` writes it, made from the program itself: no network.

    archive.py PROGRAM NAME:TAG FILE
"""

import hashlib
import io
import json
import os
import sys
import tarfile

# Distribution's own Dockerfile of 3.x, in the parts that decide how it is run.
CONFIG = {
    "Entrypoint": ["registry"],
    "Cmd": ["serve", "/etc/distribution/config.yml"],
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OTEL_TRACES_EXPORTER=none"],
}


def entry(name, size=0, mode=0o644, kind=tarfile.REGTYPE):
    made = tarfile.TarInfo(name)
    made.size, made.mode, made.type = size, mode, kind
    return made


def layer(program):
    """A tar of a root with nothing in it but the program."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as root:
        for folder in ("bin", "etc", "tmp"):
            root.addfile(entry(folder, mode=0o1777 if folder == "tmp" else 0o755, kind=tarfile.DIRTYPE))
        with open(program, "rb") as file:
            root.addfile(entry("bin/registry", os.path.getsize(program), 0o755), file)
    return tar.getvalue()


def archive(program, name, path):
    """Write the archive; the image's id."""
    root = layer(program)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": CONFIG,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(root).hexdigest()]},
            "history": [{"created_by": "archive.py"}],
        }
    ).encode()
    identity = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{identity}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as made:
        for what, content in ((f"{identity}.json", config), ("layer.tar", root), ("manifest.json", manifest)):
            made.addfile(entry(what, len(content)), io.BytesIO(content))
    return f"sha256:{identity}"


if __name__ == "__main__":
    print(archive(*sys.argv[1:4]))
