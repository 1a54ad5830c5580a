"""Pulls without a pause, while their cache is collected, restarted, killed and provisioned again and again."""

import json
import os
import random
import time

from machine import profile
from report import at_least, exits
from scenarios.common import applied_at_boot, pulled, push, reference

LENGTH = int(os.environ.get("SOAK_SECONDS") or 600)
SECONDS = LENGTH + 180
UPSTREAM = "quay.io"
ACTIONS = {
    "collection": f"systemctl start larder-gc@{UPSTREAM}.service",
    "restart": f"systemctl restart larder-registry@{UPSTREAM}.service",
    "crash": f"systemctl kill -s KILL larder-registry@{UPSTREAM}.service",
    "apply": "larder apply >/dev/null",
    # Out of the registry's sight first: it writes below while they are deleted.
    "expiry of all": f"cd /var/lib/larder/{UPSTREAM} && gone=$(mktemp -d -p .) && "
                     "find docker/registry/v2/repositories -mindepth 1 -maxdepth 1 -exec mv -t $gone {} + && rm -rf $gone",
}


def run(t):
    lab = t.lab()
    tags = [str(n) for n in range(20)]
    push(lab, *tags, upstreams=[UPSTREAM], size=(3, 1_000_000))
    node = lab.machine("node")
    node.apply_at_boot(profile())
    node.boot()
    applied_at_boot(t, node)
    load = node.start("cri churn /run/stop " + " ".join(reference(UPSTREAM, tag) for tag in tags))
    dice, done, end = random.Random(), dict.fromkeys(ACTIONS, 0), time.monotonic() + LENGTH
    while time.monotonic() < end:
        action = dice.choice(list(ACTIONS))
        node.wait(f"systemctl is-active larder-registry@{UPSTREAM}", 60)
        result = node.sh(ACTIONS[action])
        if result.code != 0:
            t.check(f"{action} number {done[action] + 1}", result, "exit 0")
        done[action] += 1
        time.sleep(dice.uniform(0, 4))
    node.sh("touch /run/stop")
    result = json.loads(load.communicate(timeout=120)[0].strip().splitlines()[-1])
    t.note(f"{done}, {result['pulls']} pulls, the slowest {result['slowest']}s")
    t.check("pulls", result["pulls"], at_least(LENGTH // 10))
    t.check("pulls lost", result["failures"], [])
    t.check("the cache is back", node.wait("larder verify", 60), exits(0))
    t.check("a last pull", node.pull(reference(UPSTREAM, tags[0])), pulled)
    t.note(node.out(f"systemctl status --no-pager -n0 larder-registry@{UPSTREAM} | grep -E 'Memory|Tasks|CPU'"))
