"""Registries that restart while images are pulled, and passwords that change: who notices."""

import json
import os
import time

from machine import CACHE, profile
from report import at_least, exits, has, lacks
from scenarios.common import pulled, push, reference, repository, second_apply_changes_nothing

REGISTRY_3 = os.path.join(CACHE, "bin/registry")
HOST, PORT = "ghcr.io", 5010
UNIT = f"larder-registry@{HOST}.service"
RESTARTS = 6
CLIENTS = 3
VERSION_3 = "cache: { engine: { binary: /usr/local/bin/registry } }\n"
NO_FALLBACK = "containerd: { fallback: false }\n"
DOOR = "10.0.20.21:5000"
# A helper whose password is what a file says.
HELPER = """#!/bin/sh
cat > /run/helper-asked 2>/dev/null
printf '{"ServerURL":"x","Username":"bot","Secret":"%s"}' "$(cat /usr/local/share/password)"
"""


def machine_profile(three, fallback, more=""):
    text = profile(upstreams=(HOST,), cache=None, containerd=None if fallback else NO_FALLBACK)
    text += "" if not fallback else "containerd: {}\n"
    return text + (VERSION_3 if three else "cache: {}\n") + more


def apply(t, node, what, text):
    node.write("/etc/larder/profile.yaml", text)
    said = node.larder("apply")
    t.check(f"{what}: apply", said, exits(0))


def load(t, node, what):
    """Pulls that go on during restarts: how many, and how many failed."""
    node.sh("rm -f /run/stop")
    clients = [node.start(f"cri churn /run/stop {reference(HOST, str(n + 1))}") for n in range(CLIENTS)]
    time.sleep(1)
    for _ in range(RESTARTS):
        node.sh(f"systemctl restart {UNIT}")
        time.sleep(1.5)
    node.sh("touch /run/stop")
    said = [json.loads(client.communicate(timeout=120)[0].splitlines()[-1]) for client in clients]
    pulls, failed = sum(one["pulls"] for one in said), sum(len(one["failures"]) for one in said)
    t.note(f"{what}: {pulls} pulls by {CLIENTS} clients during {RESTARTS} restarts, {failed} failed")
    t.check(f"{what}: pulls", pulls, at_least(CLIENTS * RESTARTS))
    return failed, [failure for one in said for failure in one["failures"]][:3]


def run(t):
    lab = t.lab()
    push(lab, "1", "2", "3", "4", upstreams=(HOST,))
    node = lab.machine("node")
    node.put("/usr/local/bin/docker-credential-test", HELPER, mode=0o755)
    node.put("/usr/local/share/password", "first-word")
    has_3 = os.path.isfile(REGISTRY_3)
    if has_3:
        node.put("/usr/local/bin/registry", source=REGISTRY_3, mode=0o755)
    node.apply_at_boot(machine_profile(False, True))
    node.boot()
    t.check("pulls", node.pull(*(reference(HOST, str(n + 1)) for n in range(CLIENTS))), pulled)

    t.check("2.8 with fallback: failed pulls", load(t, node, "2.8 with fallback"), (0, []))
    apply(t, node, "2.8 without fallback", machine_profile(False, False))
    load(t, node, "2.8 without fallback")

    # Small and well: the timer's step leaves it alone.
    pid = node.show(UNIT, "MainPID")
    t.check("the restart timer's step", node.sh(f"systemctl start larder-restart@{HOST}.service"), exits(0))
    t.check("the registry after it", node.show(UNIT, "MainPID"), pid)
    t.check("the journal then", node.out("journalctl -t larder -n 20"), has("not restarted: it is well"))
    helper_of_2(t, lab, node)
    if not has_3:
        t.skip("Distribution 3", f"no {REGISTRY_3}: `make deps` could not build it")
        return

    always = machine_profile(True, False).replace("registry }", "registry }, restart: { always: true }, memory: { high: 512MiB }")
    apply(t, node, "from 2.8 to 3", always)
    t.check("who listens", node.out(f"systemctl is-active larder-registry@{HOST}.socket {UNIT}"), "active\nactive")
    t.check("the registry's sockets", node.out("journalctl -u larder-registry@ghcr.io -t registry | grep -o 'socket activation'"), has("socket activation"))
    t.check("its ceiling", node.show(UNIT, "MemoryHigh"), {"MemoryHigh": str(512 << 20)})
    t.check("3 without fallback: failed pulls", load(t, node, "3 without fallback"), (0, []))
    pid = node.show(UNIT, "MainPID")
    node.sh(f"systemctl start larder-restart@{HOST}.service")
    again = node.wait(f"test $(systemctl show -P MainPID {UNIT}) != {pid['MainPID']}", 20)
    t.check("the restart timer's step with `always`", again, exits(0))
    second_apply_changes_nothing(t, node)
    passwords(t, lab, node)
    apply(t, node, "from 3 back to 2.8", machine_profile(False, False))
    t.check("the socket is gone", node.out(f"systemctl is-active larder-registry@{HOST}.socket"), "inactive")
    main = node.out(f"ps -o args= -p $(systemctl show -P MainPID {UNIT})")
    t.check("the engine then", main, has("docker-registry serve"))
    t.check("a pull then", node.pull(reference(HOST)), pulled)


def asks(tag):
    """A cold tag through the cache, until it is there."""
    url = f"http://10.0.20.10:{PORT}/v2/{repository(HOST)}/manifests/{tag}"
    code = (
        "import sys, urllib.request as u; r = u.Request(sys.argv[1]);"
        'r.add_header("Accept", "application/vnd.oci.image.manifest.v1+json"); u.urlopen(r, timeout=10)'
    )
    return f"python3 -c '{code}' {url}"


def helper_of_2(t, lab, node):
    """Distribution 2 knows its password from its start on: one that expires costs it a restart, which drains."""
    fake = lab.fake()
    door = fake.door(DOOR, "https://10.0.20.1", bearer="bot:first-word")
    private = machine_profile(False, True).replace(
        f"port: {PORT} }}", f"port: {PORT}, remote: http://{DOOR}, credential_helper: test }}"
    )
    apply(t, node, "2.8 with a helper", private)
    node.sh("rm -rf /var/lib/larder/ghcr.io/docker")
    t.check("2.8: a cold tag with a helper's password", node.wait(asks("1"), 30), exits(0))
    state = node.show(UNIT, "MainPID", "NRestarts")
    # By what its command line says it could not be told: a configuration with a password has no name.
    group = node.out(f"systemctl show -P ControlGroup {UNIT}").strip()
    processes = f"cat '/sys/fs/cgroup{group}/cgroup.procs' 2>/dev/null | wc -l"
    t.check("2.8: its processes", node.out(processes), "2")
    door.set("refuse")
    door = fake.door(DOOR, "https://10.0.20.1", bearer="bot:second-word")
    node.sh("printf second-word > /usr/local/share/password")
    t.check("2.8: a cold tag with its next one", node.wait(asks("2"), 100), exits(0))
    t.check("2.8: the unit since then", node.show(UNIT, "MainPID", "NRestarts"), state)
    t.check("2.8: the journal then", node.out("journalctl -t larder -n 30"), has("the credentials are new"))
    node.sh("printf first-word > /usr/local/share/password")
    node.sh(f"systemctl stop {UNIT}")
    t.check("2.8: its processes once it is stopped", node.out(processes), "0")
    door.set("refuse")


def passwords(t, lab, node):
    """Distribution 3, in front of an upstream that wants a password, and another one later."""
    fake = lab.fake()
    door = fake.door(DOOR, "https://10.0.20.1", basic="bot:first-word")

    def private(login):
        return machine_profile(True, False).replace(
            f"port: {PORT} }}", f"port: {PORT}, remote: http://{DOOR}, {login} }}"
        )

    def rotate(door, password):
        door.set("refuse")
        return fake.door(DOOR, "https://10.0.20.1", basic=f"bot:{password}")

    node.write("/etc/larder/secrets/upstream", "first-word")
    apply(t, node, "a password", private("username: bot, password: { file: /etc/larder/secrets/upstream }"))
    t.check("the password's file", node.out("stat -c '%a %U' /etc/larder/registry/ghcr.io.login"), "600 larder")
    pid = node.show(UNIT, "MainPID", "NRestarts")
    environment = node.out(f"tr '\\0' '\\n' < /proc/{pid['MainPID']}/environ")
    t.check("the registry's environment", environment, lacks("REGISTRY_PROXY", "first-word"))
    node.sh("rm -rf /var/lib/larder/ghcr.io/docker")
    mark = fake.mark()
    t.check("a cold tag with it", node.wait(asks("1"), 20), exits(0))
    t.check("the upstream was asked with it", [r.status for r in fake.requests(mark, what="/manifests/")][-1:], [200])

    door = rotate(door, "two")
    node.write("/etc/larder/secrets/upstream", "two")
    apply(t, node, "another password", private("username: bot, password: { file: /etc/larder/secrets/upstream }"))
    t.check("a cold tag with the other one", node.wait(asks("2"), 30), exits(0))
    t.check("the registry since the first", node.show(UNIT, "MainPID", "NRestarts"), pid)

    node.sh("printf two > /usr/local/share/password")
    apply(t, node, "a helper", private("credential_helper: test"))
    pid = node.show(UNIT, "MainPID", "NRestarts")
    t.check("a cold tag with a helper's password", node.wait(asks("3"), 30), exits(0))
    door = rotate(door, "three")
    node.sh("printf three > /usr/local/share/password")
    t.check("a cold tag with its next one", node.wait(asks("4"), 30), exits(0))
    t.check("the registry since the helper", node.show(UNIT, "MainPID", "NRestarts"), pid)
    door.set("refuse")
