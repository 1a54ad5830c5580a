"""Every command of README.md and docs/ really runs, on machines that are what the page speaks of. See pages.py."""

import os
import re
import shlex

import pages
from machine import profile
from report import exits
from scenarios.common import example, push

# What the reader has, and a machine of the lab has not.
PROBES = [("library/busybox", "latest"), ("library/busybox", "1"), ("containerd/busybox", "1.36"), ("prometheus/busybox", "latest"), ("pause", "3.10"), ("kyverno/kyverno", "latest")]
CLIENT = profile("10.0.20.11", cache=False, containerd="containerd: { caches: [10.0.20.10] }\n")
ENDLESS = re.compile(r"--watch\b|journalctl .*(-f|--follow)\b")
SECONDS = 900


def run(t):
    lab = t.lab(flavour="nftables")
    push(lab, "1")
    lab.upstream.push(*[(name, tag, 1, 50_000) for name, tag in PROBES])
    nodes = {"node": lab.machine("node"), "client": lab.machine("client")}
    profiles = {"node": example(), "client": CLIENT}
    for node in nodes.values():
        prepare(lab, node)
        node.boot()
    nodes["node"].write("/etc/larder/profile.yaml", profile(containerd=False, cache=False))
    nodes["node"].larder("apply")  # an address for the client to go by; the caches are the first page's to make
    offline, not_run = False, []
    for page in pages.pages():
        touched = set()
        for block in page.blocks:
            name = block.marks.get("on", "node")
            if block.kind not in ("commands", "file", "output", "user-data"):
                reason = block.marks.get("shown only") or (f"run by {block.marks['run by']}" if "run by" in block.marks else "")
                not_run += [f"{block.place}: {c[1].split('#')[0].strip()}: checked by name, not run" for c in block.commands()] if block.kind == "checkout" else []
                not_run += [f"{block.place}: {reason}"] if reason else []
                continue
            if ("offline" in block.marks) != offline:
                offline = not offline
                (lab.upstream.stop if offline else lab.upstream.start)()
            if name not in touched:
                touched.add(name)
                t.check(f"{page.path}: {name} is as it should be before it", as_it_should_be(nodes[name], profiles[name]), exits(0))
            said = perform(t, nodes[name], block, locals().get("said", ""))
    for line in not_run:
        t.note(line)


def prepare(lab, node):
    node.put("/root/ca.pem", source=os.path.join(lab.directory, "ca.crt"))
    node.put("/root/token", "secret\n", mode=0o600)
    node.put("/srv/registry/docker/registry/v2/repositories/.keep", "")


def as_it_should_be(node, text):
    """The machine's own profile, and no other layer."""
    node.sh("rm -rf /etc/larder/profile.d /usr/lib/larder/profile.yaml")
    node.write("/etc/larder/profile.yaml", text)
    plan = node.larder("plan")
    return plan if plan.code == 0 else node.larder("apply")


def perform(t, node, block, before):
    """What one block asks for; what its commands printed."""
    if block.kind == "file":
        path = block.marks["file"]
        node.write(path, block.text)
        # The reader's has run with it for long.
        if path.startswith("/etc/containerd/"):
            node.sh("systemctl restart containerd")
        return before
    if block.kind == "user-data":
        node.write("/run/user-data", block.text)
        t.check(f"{block.place}: user-data", node.sh("cloud-init schema --config-file /run/user-data"), exits(0))
        return before
    if block.kind == "output":
        wanted = [".*".join(map(re.escape, re.split(r"…", line.strip()))) for line in block.text.splitlines()]
        lines = [line.strip() for line in before.splitlines()]
        missing = [line for line in wanted if line and not any(re.fullmatch(line, each) for each in lines)]
        t.check(f"{block.place}: lines that the page shows and the commands did not print", missing, [])
        return before
    said = ""
    for line, text, code in block.commands():
        command = f"cd /root; {text}"
        if ENDLESS.search(text):
            command, code = f"timeout 4 sh -c {shlex.quote(text)}", 124
        done = node.sh(command, timeout=240)
        said += done.out
        wanted = exits(code) if code is not None else ran
        t.check(f"{block.page}:{line}: {text.splitlines()[0].split(' #')[0].strip()}", done, wanted)
    return said


def ran(result):
    """a command that there is"""
    return result.code not in (126, 127)
