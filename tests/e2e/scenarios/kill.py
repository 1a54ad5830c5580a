"""`larder apply` is killed at any instant, again and again; the next run finishes the work."""

import random

from machine import changed, profile
from report import exits
from scenarios.common import UPSTREAMS, applied_at_boot

TIMES = 20
PLACES = ("/etc", "/usr/lib/systemd", "/var/lib/larder/state")


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    node.apply_at_boot(profile())
    node.boot()
    applied_at_boot(t, node)
    wanted, paths = node.ours(), places(node)

    dice = random.Random(20)
    others = [
        profile(upstreams=UPSTREAMS[:2]),
        profile(upstreams=UPSTREAMS[1:]),
        profile(containerd=False),
        profile().replace("5010", "5011"),
        profile(),
    ]
    node.write("/etc/larder/profile.yaml", others[0])
    whole = node.larder("apply").seconds
    killed = 0
    for turn in range(TIMES):
        node.write("/etc/larder/profile.yaml", others[(turn + 1) % len(others)])
        # Most of the work is in the first moments; the rest is waiting.
        delay = dice.uniform(0, whole if turn % 2 else min(whole, 0.15))
        ended = node.sh(f"larder apply >/dev/null 2>&1 & p=$!; sleep {delay:.3f}; kill -9 $p; wait $p")
        killed += ended.code == 137
    t.note(f"{killed} of {TIMES} runs killed before their end")
    t.check("runs that were killed before their end", killed >= TIMES // 2)

    node.write("/etc/larder/profile.yaml", profile())
    last = node.larder("apply")
    t.check("exit code of the last apply", last, exits(0))
    t.check("files after it, against those of the first", changed(wanted, node.ours()), [])
    t.check("paths more or less than after the first", sorted(places(node) ^ paths), [])
    t.check("plan after it", node.larder("plan"), exits(0))
    t.check("verify after it", node.larder("verify"), exits(0))


def places(node):
    """All paths but what was kept aside: half-written and temporary files would show."""
    return {path for path in node.snapshot(*PLACES) if "/state/kept" not in path}
