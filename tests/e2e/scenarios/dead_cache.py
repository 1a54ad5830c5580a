"""A cache that is dead, in every way, costs a pull next to nothing once `larder watch` has seen it.

Three machines, one for each of Debian's containerds, go through the same at the same time; what they measured is
checked afterwards and printed as a table. Where nothing bounds a pull, it is given up after BOUND seconds.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor

from machine import DEBIANS, profile
from report import at_least, at_most, exits, has, lacks
from scenarios.common import by_containerd, pulled, reference, repository

SECONDS = 420
BOUND = 20
CACHE = "10.0.20.21"
IMAGE = reference("docker.io")
HOSTS = "/etc/containerd/certs.d/docker.io/hosts.toml"
# What `watch` can see, and what the cache is told.
STATES = {
    "refuses": ("refuse",),
    "answers 404": ("status", 404),
    "answers 429": ("status", 429),
    "answers 500": ("status", 500),
    "hangs": ("hang",),
    "is mute": ("mute",),
    "black hole": None,
}
CLIENT = "containerd: { caches: [%s]%s }\n"


def run(t):
    trials = {suite: Trial(t.lab(suite)) for suite in DEBIANS}
    with ThreadPoolExecutor(len(trials)) as pool:
        jobs = {suite: pool.submit(trial.measure, suite == "trixie") for suite, trial in trials.items()}
        results = {suite: job.result() for suite, job in jobs.items()}
    table(t, results)
    for suite, result in results.items():
        judge(t, suite, result)


class Trial:
    def __init__(self, lab):
        self.lab, self.node, self.seen = lab, lab.machine("node"), {}
        lab.upstream.push((repository("docker.io"), "1", 1, 100_000))
        self.fake = lab.fake()
        self.cache = self.fake.door(f"{CACHE}:5000", "https://10.0.20.1")
        self.address = ""

    def measure(self, flaps):
        node, seen = self.node, self.seen
        node.boot()
        self.apply(seen, "apply")
        seen["round"] = self.round()
        seen["quiet"] = self.idle()
        self.stop()
        seen["cost"] = self.cost()
        node.pull(IMAGE)  # the first pull of all loads programs from disk
        node.forget()
        seen["well"], _ = self.pull()
        seen["states"] = {name: self.die(behaviour) for name, behaviour in STATES.items()}
        self.break_down(("stall",))
        seen["stall"], _ = self.pull()
        seen["stall seen"] = self.round().out + node.out(f"cat {HOSTS}")
        self.recover()
        self.killed(seen)
        self.comes_back(seen)
        if flaps:
            self.flaps(seen)
        self.closed(seen)
        return seen

    def apply(self, seen, name, more=""):
        text = profile(address="10.0.20.11", upstreams=("docker.io",), cache=False, containerd=CLIENT % (CACHE, more))
        self.node.write("/etc/larder/profile.yaml", re.sub("^network:\n(  .*\n)*", "", text, flags=re.M))
        seen[name] = self.node.larder("apply")

    def stop(self):
        """No rounds but ours."""
        self.node.sh("systemctl stop larder-watch.timer larder-watch.service")

    def round(self):
        return self.node.sh("larder watch")

    def pull(self):
        done = self.node.sh(f"timeout {BOUND} cri pull {IMAGE}")
        if done.code == 0:
            self.node.forget()
        else:
            # What came meanwhile is not to help the next one.
            self.node.sh(f"cri rmi {IMAGE}; ctr -n k8s.io content ls -q | xargs -r ctr -n k8s.io content rm")
        return (done.seconds if done.code != 124 else None), done

    def break_down(self, behaviour):
        if behaviour is None:
            self.lab.blackhole(CACHE)
            self.address = CACHE
        else:
            self.cache.set(*behaviour)

    def recover(self):
        """As after a boot: nothing is remembered, and all is well."""
        if self.address:
            self.lab.restore(CACHE)
            self.address = ""
        self.cache.set("pass")
        self.node.sh("rm -rf /run/larder/watch")
        self.round()

    def die(self, behaviour):
        self.break_down(behaviour)
        found = {}
        found["before"], _ = self.pull()
        done = self.round()
        found["round"], found["round seconds"] = done.code, done.seconds
        mark = self.fake.mark()
        found["after"], done = self.pull()
        found["pulled"] = done
        found["asked"] = [str(request) for request in self.fake.requests(mark) if "containerd" in request.agent]
        found["status"] = self.node.larder("status")
        found["plan"] = self.node.larder("plan")
        found["apply"] = self.node.larder("apply")
        self.stop()
        self.recover()
        return found

    def idle(self):
        """Rounds by the timer while all is well: what they write, and what they say."""
        node = self.node
        self.round()
        before = node.snapshot("/etc", "/var/lib/larder", "/run/larder")
        node.sh("journalctl --sync; journalctl --rotate --vacuum-time=1s >/dev/null 2>&1")
        time.sleep(12)
        lines = node.out("journalctl -q -o cat -u larder-watch.service -u larder-watch.timer -t larder")
        triggered = node.show("larder-watch.timer", "ActiveState", "LastTriggerUSecMonotonic")
        return {"wrote": before != node.snapshot("/etc", "/var/lib/larder", "/run/larder"), "said": lines, "timer": triggered}

    def cost(self):
        """CPU in ms: of a start of the service with its first round, of a later round; and its sandbox's marks."""
        used = "systemctl show larder-watch.service -P CPUUsageNSec"
        self.node.sh("systemctl restart larder-watch.service")
        time.sleep(1)
        first = int(self.node.out(used))
        time.sleep(15.5)
        later = (int(self.node.out(used)) - first) / 5
        said = self.node.out("systemd-analyze security --no-pager larder-watch.service 2>&1 | tail -n1")
        self.node.sh("systemctl stop larder-watch.service")
        return first / 1e6, later / 1e6, said.partition(": ")[2]

    def killed(self, seen):
        """Rounds that are killed at any instant, while there is something to do."""
        node = self.node
        self.cache.set("refuse")
        seen["killed"] = node.sh(
            """
            for i in $(seq 25); do
              [ $((i % 2)) = 0 ] || rm -rf /run/larder/watch
              echo '{"writing":false,"memory":{"endpoints":{"http://%s:5000":{"out":true,"since":0,"at":0,"level":1,"why":"test"}}}}' > /root/out
              [ $((i %% 2)) = 0 ] || { mkdir -p /run/larder/watch; cp /root/out /run/larder/watch/state.json; }
              larder watch >/dev/null 2>&1 & pid=$!
              sleep 0.0$((i %% 10))$((i %% 7)); kill -9 $pid; wait $pid
              python3 -c 'import tomllib, sys; tomllib.load(open(sys.argv[1], "rb"))["host"]' %s || exit 1
            done
            """.replace("i % 2", "i %% 2")
            % (CACHE, HOSTS)
        )
        seen["after the kills"] = self.round()
        seen["files after the kills"] = node.out(f"ls -A {HOSTS.rpartition('/')[0]}; cat {HOSTS}")
        seen["plan after the kills"] = node.larder("plan")

    def comes_back(self, seen):
        node = self.node
        node.sh("systemctl start larder-watch.timer")
        self.cache.set("pass")
        seen["back"] = node.wait("larder status", 40)
        seen["back after"] = node.out("journalctl -q -o cat LARDER_STATE=in | tail -n1")
        mark, above = self.fake.mark(), self.lab.upstream.mark()
        seen["pulled again"] = self.pull()[1]
        seen["through the cache"] = len(self.fake.requests(mark, what="/blobs/"))
        seen["past the cache"] = by_containerd(self.lab.upstream.requests(above, "docker.io"))
        seen["journal"] = node.out("journalctl -q -o json LARDER_STATE=out | tail -n1")

    def flaps(self, seen):
        node = self.node
        node.sh("rm -rf /run/larder/watch; journalctl --rotate --vacuum-time=1s >/dev/null 2>&1")
        self.cache.set("flap", 8)
        time.sleep(56)
        self.cache.set("pass")
        seen["flapped"] = int(node.out("journalctl -q -o cat LARDER_STATE=out | wc -l"))
        seen["flapped back"] = int(node.out("journalctl -q -o cat LARDER_STATE=in | wc -l"))

    def closed(self, seen):
        """Where the upstream must not be asked."""
        node = self.node
        self.stop()
        node.sh("rm -rf /run/larder/watch")
        self.apply(seen, "closed apply", ", fallback: false")
        self.stop()
        self.cache.set("status", 500)
        seen["closed round"] = self.round()
        seen["closed file"] = node.out(f"cat {HOSTS}")
        seen["closed status"] = node.larder("status")
        above = self.lab.upstream.mark()
        seen["closed pull"] = self.pull()[1]
        seen["leaked"] = self.lab.upstream.requests(above, "docker.io", what="/v2/")
        self.cache.set("pass")
        self.round()
        node.sh("systemctl start larder-watch.timer")
        seen["closed again"] = node.larder("status")
        seen["closed pull again"] = self.pull()[1]
        node.write("/etc/larder/profile.yaml", profile(upstreams=("docker.io",), containerd=False))


def shown(seconds):
    return f">{BOUND} s" if seconds is None else f"{seconds:.1f} s"


def table(t, results):
    t.note("one layer, pulled by CRI: before `watch` has seen the cache / after")
    t.note(f"{'the cache':<14}" + "".join(f"{DEBIANS[suite]:>20}" for suite in results))
    cell = lambda before, after: f"{shown(before)} / {after}".rjust(20)
    t.note(f"{'is well':<14}" + "".join(shown(result["well"]).rjust(20) for result in results.values()))
    for name in STATES:
        rows = [result["states"][name] for result in results.values()]
        t.note(f"{name:<14}" + "".join(cell(row["before"], shown(row["after"])) for row in rows))
    stalls = [cell(result["stall"], "not seen") for result in results.values()]
    t.note(f"{'stalls':<14}" + "".join(stalls))
    for suite, result in results.items():
        start, later, exposure = result["cost"]
        hour = (12 * start + 1200 * later) / 1000
        t.note(f"{suite}: {start:.1f} ms of CPU for a start, {later:.2f} ms for a round: {hour:.1f} s an hour; {exposure}")


def judge(trial, suite, seen):
    def check(what, got, wanted):
        trial.check(f"{DEBIANS[suite]}: {what}", got, wanted)

    check("apply", seen["apply"], exits(0))
    check("a round", seen["round"], exits(0))
    check("what rounds write while all is well", seen["quiet"]["wrote"], False)
    check("what they say", seen["quiet"]["said"], "")
    check("the timer", seen["quiet"]["timer"]["ActiveState"], "active")
    for name, state in seen["states"].items():
        check(f"a cache that {name}: the round that sees it", state["round"], 0)
        check(f"a cache that {name}: pull", state["pulled"], pulled)
        extra = (state["after"] or 999) - seen["well"]
        trial.took(f"{DEBIANS[suite]}: a cache that {name}: extra of a pull", extra, 3)
        # A pull that waits for such a cache takes over 20 s.
        check(f"a cache that {name}: extra seconds of a pull", round(extra, 1), at_most(15))
        check(f"a cache that {name}: what containerd asked it", state["asked"], [])
        check(f"a cache that {name}: status", state["status"], exits(4))
        check(f"a cache that {name}: what it says", state["status"].out, has("OUT since 2"))
        check(f"a cache that {name}: plan", state["plan"], exits(0))
        check(f"a cache that {name}: apply", state["apply"].out, has("nothing to change", "WARN"))
    if suite == "forky":
        before = seen["states"]["black hole"]["before"] or 999
        trial.took("extra of a pull before, behind a black hole", before - seen["well"], 6)
    check("a stall, which it cannot see", seen["stall seen"], lacks("Left out"))
    check("files while rounds are killed", seen["killed"], exits(0))
    check("a round after them", seen["after the kills"], exits(0))
    check("files after them", seen["files after the kills"], lacks(".larder-new."))
    check("the cache then", seen["files after the kills"], has("Left out"))
    check("plan then", seen["plan after the kills"], exits(0))
    check("back in by itself", seen["back"], exits(0))
    trial.note(seen["back after"])
    check("a pull then", seen["pulled again"], pulled)
    check("blobs that went through the cache", seen["through the cache"], at_least(2))
    check("blobs that did not", seen["past the cache"], [])
    check("the journal's entry", seen["journal"], has('"PRIORITY":"4"', "LARDER_ENDPOINT", "LARDER_WHY"))
    if "flapped" in seen:
        check("times that a flapping cache went out in 56 s", seen["flapped"], at_most(3))
        check("times that it came back", seen["flapped back"], at_most(2))
        trial.note(f"flapping: out {seen['flapped']} times, back {seen['flapped back']} times")
    check("apply without fallback", seen["closed apply"], exits(0))
    check("the last endpoint without fallback", seen["closed file"], has(f'server = "http://{CACHE}:5000"'))
    check("status then", seen["closed status"], exits(4))
    check("what it says", seen["closed status"].out, has("stays in as the last one"))
    check("a pull then fails", seen["closed pull"].code, 1)
    check("what the upstream was asked", seen["leaked"], [])
    check("status once it answers", seen["closed again"], exits(0))
    check("a pull once it answers", seen["closed pull again"], pulled)
