"""Fifty registries on one node: what memory they take, printed."""

import os

from machine import CACHE
from report import at_most, exits

REGISTRY_3 = os.path.join(CACHE, "bin/registry")
COUNT = 50
RSS = "for unit in $(systemctl list-units --plain --no-legend 'larder-registry@*.service' | awk '{print $1}'); do" \
    " awk '/VmRSS/ {print $2}' /proc/$(systemctl show -P MainPID $unit)/status; done"


def fifty(three):
    upstreams = "".join(f"  r{n}.example: {{ port: {5000 + n}, remote: https://10.0.20.1 }}\n" for n in range(COUNT))
    engine = "engine: { binary: /usr/local/bin/registry }" if three else ""
    return f"version: 1\nupstreams:\n{upstreams}cache: {{ listen: 127.0.0.1, {engine} }}\nverify: {{ timeout: 120s }}\n"


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    has_3 = os.path.isfile(REGISTRY_3)
    if has_3:
        node.put("/usr/local/bin/registry", source=REGISTRY_3, mode=0o755)
    node.boot()
    for name, three in [("2.8", False), ("3", True)][: 1 + has_3]:
        node.write("/etc/larder/profile.yaml", fifty(three))
        said = node.larder("apply")
        t.check(f"{name}: apply", said, exits(0))
        sizes = [int(line) / 1024 for line in node.out(RSS).splitlines()]
        t.check(f"{name}: registries", len(sizes), COUNT)
        t.note(f"{name}: {COUNT} registries have {sum(sizes):.0f} MiB resident, {sum(sizes) / len(sizes):.1f} MiB each, "
               f"the largest {max(sizes):.1f} MiB; apply {said.seconds:.1f}s")
        t.check(f"{name}: MiB of the largest", max(sizes), at_most(64))
