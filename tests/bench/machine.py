"""A machine that has just been installed, as far as larder looks at it, and profiles for it."""

import os
import shutil
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
(SEED,) = (TOP / "tests/cases").glob("*-seed")
PROGRAMS = ("docker-registry", "containerd")
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}


def make(root: Path) -> None:
    """Lays the machine of the seed set-up down at `root`, with the real programs."""
    # A new file each: neither the checkout's modes nor its owners.
    shutil.copytree(SEED / "root", root, symlinks=True, copy_function=shutil.copyfile)
    for path, text in ACCOUNTS.items():
        (root / path).write_text(text)
    (root / "var/lib").mkdir(parents=True)
    (root / "usr/bin").mkdir()
    for program in PROGRAMS:
        copy = root / "usr/bin" / program
        there = os.path.realpath(shutil.which(program))
        try:
            os.link(there, copy)
        except OSError:
            shutil.copy2(there, copy)


def seed() -> str:
    """The shipped example: five upstreams, the node a cache and a client at once."""
    return (SEED / "profile.yaml").read_text()


def many(count: int) -> str:
    """The same node with so many upstreams, each on a port of its own."""
    return "\n".join([
        "version: 1",
        "upstreams:",
        *(f"  registry-{n}.example.com: {{ port: {5000 + n} }}" for n in range(count)),
        "network: { interface: eth0, addresses: [10.0.20.10/24], gateway: 10.0.20.1 }",
        "cache: {}",
        "containerd: {}",
        "",
    ])
