"""Every command of README.md and docs/ really runs, on machines that are what the page speaks of. See pages.py."""

import os
import re
import shlex

import pages
from machine import profile
from report import exits
from scenarios.common import example, push

# Images that the pages and `verify --pull` name.
IMAGES = [
    ("library/busybox", "latest"),
    ("library/busybox", "1"),
    ("containerd/busybox", "1.36"),
    ("prometheus/busybox", "latest"),
    ("pause", "3.10"),
    ("kyverno/kyverno", "latest"),
]
# Each machine's profile before a page begins; the first page meets one that has nothing but its address.
PROFILES = {
    "node": example(),
    "client": profile("10.0.20.11", cache=False, containerd="containerd: { caches: [10.0.20.10] }\n"),
}
FIRST = profile(cache=False, containerd=False)
ENDLESS = re.compile(r"--watch\b|journalctl .*(-f|--follow)\b")
SECONDS = 900


def run(t):
    lab = t.lab(flavour="nftables")
    push(lab, "1")
    lab.upstream.push(*[(name, tag, 1, 50_000) for name, tag in IMAGES])
    reader = Reader(t, lab)
    for page in pages.pages():
        reader.read(page)
    t.note("not run:")
    for line in reader.not_run:
        t.note(line)


class Reader:
    """Who goes through the pages, and does what they say."""

    def __init__(self, t, lab):
        self.t, self.lab = t, lab
        self.machines = {name: lab.machine(name) for name in PROFILES}
        self.is_offline, self.said, self.not_run = False, "", []
        for node in self.machines.values():
            # What a reader brings.
            node.put("/root/ca.pem", source=os.path.join(lab.directory, "ca.crt"))
            node.put("/root/token", "secret\n", mode=0o600)
            node.put("/srv/registry/docker/registry/v2/repositories/.keep", "")
            node.boot()

    def read(self, page):
        is_ready = False
        for block in page.blocks:
            if block.kind not in ("commands", "file", "output", "user-data"):
                self.not_run += [f"{block.place}: {reason}" for reason in why_not(block)]
                continue
            if not is_ready:
                # All of them, the cache first: the client asks it.
                for name in self.machines:
                    self.t.check(f"{page.path}: {name} before it", self.make_ready(name, page), exits(0))
                is_ready = True
            self.follow(block, self.machines[block.marks.get("on", "node")])

    def make_ready(self, name, page):
        """The machine has its own profile, and no other layer."""
        self.upstreams(True)
        node = self.machines[name]
        node.sh("rm -rf /etc/larder/profile.d /usr/lib/larder/profile.yaml")
        text = FIRST if (page.path, name) == ("README.md", "node") else PROFILES[name]
        node.write("/etc/larder/profile.yaml", text)
        # As after a boot: nobody remembers which caches were out while the last page stopped them.
        node.sh("systemctl stop larder-watch.timer larder-watch.service; rm -rf /run/larder/watch")
        plan = node.larder("plan")
        done = plan if plan.code == 0 else node.larder("apply")
        node.sh("systemctl start larder-watch.timer")
        return done

    def upstreams(self, are_there):
        if self.is_offline == are_there:
            self.is_offline = not are_there
            (self.lab.upstream.start if are_there else self.lab.upstream.stop)()

    def follow(self, block, node):
        self.upstreams("offline" not in block.marks)
        match block.kind:
            case "file":
                path = block.marks["file"]
                node.write(path, block.text)
                # The reader's has run with it for long.
                if path.startswith("/etc/containerd/"):
                    node.sh("systemctl restart containerd")
            case "user-data":
                node.write("/run/user-data", block.text)
                done = node.sh("cloud-init schema --config-file /run/user-data")
                self.t.check(f"{block.place}: user-data", done, exits(0))
            case "output":
                missing = [line for line in block.text.splitlines() if not is_in(line, self.said)]
                self.t.check(f"{block.place}: lines that are shown and were not printed", missing, [])
            case "commands":
                self.said = "".join(self.command(block, node, *one) for one in block.commands())

    def command(self, block, node, line, text, code):
        """One command, as root in /root; what it printed."""
        name = text.splitlines()[0].split(" #")[0].strip()
        if ENDLESS.search(text):
            text, code = f"timeout 4 sh -c {shlex.quote(text)}", 124
        done = node.sh(f"cd /root; {text}", timeout=240)
        self.t.check(f"{block.page}:{line}: {name}", done, was_there if code is None else exits(code))
        return done.out


def why_not(block):
    """What of a block is not run, and why."""
    if block.kind == "checkout":
        return [f"{text.split(' #')[0].strip()}: checked by name" for _, text, _ in block.commands()]
    if block.kind == "run by":
        return [f"run by {block.marks['run by']}"]
    return [block.marks["shown only"]] if block.kind == "shown only" else []


def is_in(line, text):
    """Whether a line was printed; `…` in it is anything."""
    wanted = ".*".join(map(re.escape, line.strip().split("…")))
    return any(re.fullmatch(wanted, each.strip()) for each in text.splitlines())


def was_there(result):
    """a command that there is"""
    return result.code not in (126, 127)
