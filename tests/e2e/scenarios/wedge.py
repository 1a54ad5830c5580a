"""A registry that is stuck on one hung connection is restarted soon after its upstream is back; one whose upstream is
merely away is not.

Three machines, one for each Debian, go through the same at the same time. Each has two registries that get stuck, one
of Distribution 2.8 and one of 3, and three whose upstreams are away in a way of their own: refused, a black hole, 500.
Somebody waits at each of them all the time.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from machine import CACHE, DEBIANS, profile
from report import exits, has
from scenarios.common import repository
from upstream import NAMES

BINARY = os.path.join(CACHE, "bin/registry")
STUCK = ("docker.io", "ghcr.io")
AWAY = ("quay.io", "registry.k8s.io", "reg.kyverno.io")
PORT = {name: 5000 + 10 * index for index, name in enumerate(NAMES)}
DOOR = {name: f"10.0.20.{31 + index}" for index, name in enumerate(NAMES)}
HANGS, AWAY_FOR = 30, 130
# Asks for something new every second, for as long as it lasts; `busy SECONDS PORT/REPOSITORY...`.
BUSY = """#!/usr/bin/env python3
import sys, threading, time, urllib.request
until = time.monotonic() + float(sys.argv[1])
def ask(where):
    port, _, repository = where.partition("/")
    for n in range(10**9):
        if time.monotonic() > until:
            return
        try:
            url = f"http://10.0.20.10:{port}/v2/{repository}/manifests/new{n}"
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=15).close()
        except OSError:
            pass
        time.sleep(1)
for where in sys.argv[2:]:
    threading.Thread(target=ask, args=[where], daemon=True).start()
time.sleep(max(0, until - time.monotonic()))
"""
# 404 of a tag that nobody has: the cache has asked its upstream.
COLD = (
    "import sys, urllib.request as u, urllib.error as e\n"
    "try: print(u.urlopen(u.Request(sys.argv[1], method='HEAD'), timeout=3).status)\n"
    "except e.HTTPError as error: print(error.code)\n"
    "except OSError as error: print(error)"
)


def run(t):
    trials = {suite: Trial(t.lab(suite)) for suite in DEBIANS}
    with ThreadPoolExecutor(len(trials)) as pool:
        results = dict(zip(trials, pool.map(Trial.measure, trials.values())))
    for suite, seen in results.items():
        judge(t, suite, seen)


class Trial:
    def __init__(self, lab):
        self.lab, self.node = lab, lab.machine("node")
        fake = lab.fake()
        self.doors = {name: fake.door(f"{DOOR[name]}:80", "https://10.0.20.1") for name in NAMES}
        self.fake = fake
        self.three = os.path.isfile(BINARY)

    def measure(self):
        node, seen = self.node, {"three": self.three}
        text = profile()
        for name in NAMES:
            more = f"remote: http://{DOOR[name]}, restart: never, probe: {repository(name)}"
            text = text.replace(f"{name}: {{ port: {PORT[name]} }}", f"{name}: {{ port: {PORT[name]}, {more} }}")
        node.put("/usr/local/bin/busy", BUSY, mode=0o755)
        if self.three:
            node.put("/usr/local/lib/registry-3", source=BINARY, mode=0o755)
            node.put(
                "/etc/systemd/system/larder-registry@ghcr.io.service.d/90-three.conf",
                "[Service]\nExecStart=\nExecStart=/usr/local/lib/registry-3 serve /etc/larder/registry/%i.yml\n",
            )
        node.put("/etc/larder/profile.yaml", text.replace("containerd: {}\n", ""))
        node.boot()
        seen["apply"] = node.larder("apply")
        seen["engines"] = node.out("pgrep -a registry")
        mark = self.fake.mark()
        time.sleep(25)
        seen["idle"] = [str(request) for request in self.fake.requests(mark)]
        seen["before"] = self.pids()

        names = " ".join(f"{PORT[name]}/{repository(name)}" for name in NAMES)
        busy = node.start(f"busy {HANGS + AWAY_FOR} {names}")
        time.sleep(3)
        away = time.monotonic()
        self.doors["quay.io"].set("refuse")
        self.lab.blackhole(DOOR["registry.k8s.io"])
        self.doors["reg.kyverno.io"].set("status", 500)
        for name in STUCK:
            self.doors[name].set("hang")
        time.sleep(HANGS)
        seen["hanging"] = self.pids()
        for name in STUCK:
            self.doors[name].set("pass")
        back, seen["recovered"] = time.monotonic(), {}
        while time.monotonic() < back + 90 and len(seen["recovered"]) < len(STUCK):
            for name in STUCK:
                if name not in seen["recovered"] and self.cold(name) == "404":
                    seen["recovered"][name] = time.monotonic() - back
                    if time.monotonic() < back + 5:
                        seen["stuck"] = f"{name} was not"
        time.sleep(max(0, away + AWAY_FOR - time.monotonic()))
        seen["after"], seen["away"] = self.pids(), time.monotonic() - away
        seen["journal"] = node.out("journalctl -q -o cat -t larder")
        self.doors["quay.io"].set("pass")
        self.lab.restore(DOOR["registry.k8s.io"])
        self.doors["reg.kyverno.io"].set("pass")
        back = time.monotonic()
        seen["returned"] = {}
        while time.monotonic() < back + 60 and len(seen["returned"]) < len(AWAY):
            for name in AWAY:
                if name not in seen["returned"] and self.cold(name) == "404":
                    seen["returned"][name] = time.monotonic() - back
        busy.wait(120)
        seen["end"] = self.pids()
        # Its own user namespace, from which it reaches systemd all the same.
        seen["users"] = node.out("cat /proc/$(systemctl show -P MainPID larder-watch.service)/uid_map")
        return seen

    def pids(self):
        return {name: self.node.show(f"larder-registry@{name}", "MainPID")["MainPID"] for name in NAMES}

    def cold(self, name):
        url = f"http://10.0.20.10:{PORT[name]}/v2/{repository(name)}/manifests/cold{time.monotonic_ns()}"
        return self.node.out(f'python3 -c "{COLD}" {url}')


def judge(t, suite, seen):
    t.check(f"{suite}: apply", seen["apply"], exits(0))
    if seen["three"]:
        t.check(f"{suite}: the engines", seen["engines"], has("docker-registry serve", "registry-3 serve"))
    else:
        t.skip(f"{suite}: Distribution 3", f"no {BINARY}: `make deps` could not build it")
    t.check(f"{suite}: what idle registries' upstreams are asked in 25 s", seen["idle"], [])
    t.check(f"{suite}: nobody is restarted while the upstreams hang", seen["hanging"], seen["before"])
    t.check(f"{suite}: they were stuck when it was over", seen.get("stuck", "yes"), "yes")
    for name in STUCK:
        took = seen["recovered"].get(name)
        t.check(f"{suite}: {name} serves again", took is not None)
        if took is not None:
            engine = "3" if name == "ghcr.io" and seen["three"] else "2.8"
            t.took(f"{suite}: {name}, Distribution {engine}: serves after its upstream's return", took, 60)
    restarted = "larder-registry@%s.service is restarted"
    said = [name for name in NAMES if restarted % name in seen["journal"]]
    t.check(f"{suite}: who was restarted, by the journal", sorted(said), sorted(STUCK))
    t.note(f"{suite}: refused, black hole and 500 for {seen['away']:.0f} s")
    for what in ("before", "after", "end"):
        seen[what] = {name: seen[what][name] for name in AWAY}
    t.check(f"{suite}: those whose upstreams are away run on", seen["after"], seen["before"])
    # A connection from before the black hole hangs on after it, until TCP tries again, for minutes: that is the wedge.
    for name in ("quay.io", "reg.kyverno.io"):
        t.check(f"{suite}: {name}: not even when it is back", seen["end"][name], seen["before"][name])
    t.check(f"{suite}: all serve within a minute of that", sorted(seen["returned"]), sorted(AWAY))
    t.note(f"{suite}: served after {({name: round(took) for name, took in seen['returned'].items()})} s; {seen['users']}")
