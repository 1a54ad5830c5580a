"""A machine that boots while its upstreams say nothing serves what it has within seconds, and all of it once they
are back."""

import os
import time

from machine import CACHE, profile
from report import exits, has, lacks
from scenarios.common import pulled, push, reference, repository

REGISTRY_3 = os.path.join(CACHE, "bin/registry")
UPSTREAMS = ("docker.io", "ghcr.io")
ASK = """
import json, sys, time, urllib.request
base, repository, unit = sys.argv[1:]
def get(path):
    headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    return urllib.request.urlopen(urllib.request.Request(f"{base}/v2/{repository}/{path}", headers=headers), timeout=10).read()
deadline = time.monotonic() + 60
while True:
    try:
        manifest = json.loads(get("manifests/1"))
        break
    except OSError as error:
        if time.monotonic() > deadline:
            sys.exit(f"{base}: {error}")
        time.sleep(0.05)
digest = manifest["layers"][0]["digest"]
assert len(get("blobs/" + digest)) == manifest["layers"][0]["size"]
print(f"{time.clock_gettime(time.CLOCK_MONOTONIC):.1f}")
"""
COLD = (
    "import sys, urllib.request as u; r = u.Request(sys.argv[1]);"
    'r.add_header("Accept", "application/vnd.oci.image.manifest.v1+json"); u.urlopen(r, timeout=60)'
)
COLD_TAG = f"http://10.0.20.10:5010/v2/{repository('ghcr.io')}/manifests/2"


def served_after(t, node, when, host, port):
    """Seconds from the start of a unit to its first answers."""
    done = node.sh(f"python3 - http://10.0.20.10:{port} {repository(host)} {host}", stdin=ASK)
    if not t.check(f"{host}: a cached tag and a cached digest {when}", done, exits(0)):
        return
    unit = node.show(f"larder-registry@{host}", "ExecStartPre", "InactiveExitTimestampMonotonic")
    started = int(unit["InactiveExitTimestampMonotonic"]) / 1e6
    seconds = float(done.out) - started
    t.took(f"{host}: served after the start of its unit {when}", seconds, 5)


def on(t, major):
    lab = t.lab()
    push(lab, "1", "2", upstreams=UPSTREAMS)
    node = lab.machine("node")
    if major == 3:
        node.put("/usr/local/bin/registry", source=REGISTRY_3, mode=0o755)
        node.commands.append(
            "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d;"
            "dpkg --purge docker-registry >/dev/null; rm /usr/sbin/policy-rc.d"
        )
    node.apply_at_boot(profile(upstreams=UPSTREAMS))
    node.boot()
    t.check("pulls", node.pull(*map(reference, UPSTREAMS)), pulled)
    log = "/var/lib/larder/ghcr.io/.larder/access.log"
    t.check("the access log's mode and owner", node.out(f"stat -c '%a %U' {log}"), "640 larder")
    t.check("the access log", node.out(f"cat {log}"), has(f"GET /v2/{repository('ghcr.io')}/manifests/"))
    main = node.out("ps -o args= -p $(systemctl show -P MainPID larder-registry@ghcr.io)")
    t.check("the unit's main process", main, has("serve /etc/larder/registry/ghcr.io.yml"))

    lab.blackhole("10.0.20.1")
    # One that asks for what is not there, and waits for it: the upstream says nothing, and the registry waits, too.
    node.sh(f"systemd-run --unit stuck --collect python3 -c '{COLD}' {COLD_TAG}")
    main = node.out("systemctl show -P MainPID larder-registry@ghcr.io").strip()
    stuck = node.wait(f"ss -tnHp dst 10.0.20.1 | awk '$3 > 0' | grep -q pid={main},", 30)
    t.check("a pull that is stuck", stuck, exits(0))
    node.reboot()
    last = "journalctl -b -1 -u larder-registry@ghcr.io --no-pager"
    t.check("the journal of the boot before", node.out(last), has("pulls are cut off"))
    for index, host in enumerate(UPSTREAMS):
        served_after(t, node, "at a boot with the upstream silent", host, 5000 + 10 * index)
    state = node.show("larder-registry@ghcr.io", "NRestarts", "MainPID")
    t.check("restarts so far", state["NRestarts"], "0")
    t.check("its processes", node.out("pgrep -u larder -fc ghcr.io"), "2")
    t.check("the journal", node.out("journalctl -b -t larder"), has("does not answer"))

    lab.restore("10.0.20.1")
    started = time.monotonic()
    cold = node.wait(f"python3 -c '{COLD}' {COLD_TAG}", 60)
    t.check("a cold tag once the upstream is back", cold, exits(0))
    t.note(f"a cold tag {time.monotonic() - started:.1f}s after the upstream was back")
    t.check("a cold pull once the upstream is back", node.pull(reference("ghcr.io", "2")), pulled)
    again = node.show("larder-registry@ghcr.io", "NRestarts", "MainPID", "ActiveState")
    t.check("the unit since then", again, {**state, "ActiveState": "active"})
    t.check("its processes then", node.out("pgrep -u larder -fc ghcr.io"), "1")


def run(t):
    with t.part("Distribution 2.8"):
        on(t, 2)
    if not os.path.isfile(REGISTRY_3):
        t.skip("Distribution 3", f"no {REGISTRY_3}: `make deps` could not build it")
        return
    with t.part("Distribution 3"):
        on(t, 3)
