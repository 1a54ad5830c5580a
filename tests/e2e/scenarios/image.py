"""An image is provisioned as a tree; its first boot does only what a tree cannot have."""

import json
import os
import sys

from machine import HERE, changed, ours, profile
from machine import run as host
from report import exits, has
from scenarios.common import has_its_address, pulled, push, reference, units_run

SNAPSHOT = [sys.executable, os.path.join(HERE, "snapshot.py")]


def run(t):
    lab = t.lab()
    push(lab, "1")
    live = lab.machine("live")
    live.apply_at_boot(profile())
    live.boot()
    wanted = live.ours()
    live.stop()

    node = lab.machine("node")
    lab(
        "mounted",
        node.name,
        lab.image,
        "sh",
        "-c",
        'mkdir -p "$ROOT/etc/larder" && cat > "$ROOT/etc/larder/profile.yaml"',
        stdin=profile(),
    )
    host_before = outside()
    applied = lab.ask("mounted", node.name, "sh", "-c", f'"{lab.larder}" apply --root "$ROOT"')
    t.check("exit code of `larder apply --root`", applied, exits(0))
    t.note(applied.out)
    t.check("what it changed outside the root", changed(host_before, outside()), [])
    made = offline(lab, node)
    t.check("the image's files against those of a running machine", changed(wanted, made), [])
    again = lab.ask("mounted", node.name, "sh", "-c", f'"{lab.larder}" plan --root "$ROOT"')
    t.check("plan of the image after it", again, exits(0))

    node.boot()
    t.check("failed units", node.out("systemctl --failed --no-legend --plain"), "")
    t.check(
        "larder.service at the first boot",
        node.show("larder.service", "ActiveState", "Result"),
        {"ActiveState": "active", "Result": "success"},
    )
    has_its_address(t, node, "at the first boot")
    units_run(t, node, "at the first boot")
    t.check("verify", node.larder("verify"), exits(0))
    t.check("files that the first boot changed", changed(made, node.ours()), [])
    t.check("plan", node.larder("plan"), exits(0))
    t.check("pull through CRI", node.pull(reference("docker.io")), pulled)
    t.check("who asked the cache", node.out("journalctl -b -u larder-registry@docker.io"), has("containerd/"))


def offline(lab, node):
    """The machine's own files, read from the tree."""
    text = lab("mounted", node.name, "sh", "-c", f'{" ".join(SNAPSHOT)} --content "$ROOT/etc"')
    root = f"{lab.directory}/nodes/{node.name}/root"
    return ours({path.removeprefix(root): what for path, what in json.loads(text).items()})


def outside():
    """What a provisioner could touch on this host."""
    places = [
        place for place in ("/etc", "/var/lib/larder", "/run/larder", "/run/systemd/system") if os.path.isdir(place)
    ]
    return json.loads(host([*SNAPSHOT, *places]).out)
