"""The .rpm, by rpm itself on a booted machine. No distribution of rpm's can be had here: the tree is Debian's, and a
package that says so provides what larder's requires of it."""

import os

import packages
from machine import changed, profile
from report import exits, has, lacks
from scenarios.common import pulled, push, reference
from scenarios.package import (
    LEFT_BY_PURGE, LEFT_BY_REMOVAL, PROFILE, REGISTRIES, SETTINGS, UPSTREAMS, gone, is_idle, pids, serves, snapshot,
)  # fmt: skip

SUITE = "trixie"
SECONDS = 900


def rpm(node, *arguments):
    return node.sh(f"rpm {' '.join(arguments)}", timeout=400)


def put(node, version):
    return rpm(node, "-U --oldpackage", f"/root/{packages.rpm(version)}")


def is_sound(t, node, when):
    altered = f"rpm --verify larder | grep -vE ' ({SETTINGS}|/usr/share/(man|doc|licenses)/.*)$'"
    t.check(f"rpm --verify {when}", node.out(altered), "")


def run(t):
    lab = t.lab(SUITE, "rpm")
    push(lab, "1", upstreams=UPSTREAMS)
    node = lab.machine("node")
    del node.files["/usr/local/bin/larder"]
    folder, ours = packages.build(lab.larder), packages.version()
    for name in (*map(packages.rpm, (packages.OLD, ours, packages.NEW)), packages.BASE):
        node.put(f"/root/{name}", source=os.path.join(folder, name))
    # Debian's presets enable what none names.
    node.boot()
    t.check("a tree's own package", rpm(node, "-U", f"/root/{packages.BASE}"), exits(0))
    # Folders of a distribution's own.
    node.sh("mkdir -p /usr/share/licenses /usr/share/man/man5 /usr/share/man/man8")
    before = snapshot(node)

    t.check("install", put(node, packages.OLD), exits(0))
    is_idle(t, node, "after the installation")
    is_sound(t, node, "after the installation")
    t.check("user", node.out("getent passwd larder"), has("/var/lib/larder", "nologin"))
    t.check("folders", node.out("stat -c '%a %U %n' /etc/larder/*"), has("700 root /etc/larder/secrets"))

    node.write(PROFILE, profile(upstreams=UPSTREAMS))
    t.check("start with a profile", node.sh("systemctl start larder.service"), exits(0))
    serves(t, node, "after the start")

    node.sh(f"echo '# mine' >> {SETTINGS}; systemctl disable -q larder.service")
    kept = pids(node, *REGISTRIES, "containerd.service")
    t.check("upgrade", put(node, ours), exits(0))
    t.check("an edited file after the upgrade", node.out(f"tail -n 1 {SETTINGS}"), "# mine")
    t.check("the package's beside it", node.out(f"cat {SETTINGS}.rpmnew"), lacks("older text"))
    t.check("processes of registries and containerd", pids(node, *REGISTRIES, "containerd.service"), kept)
    t.check("a switched off larder.service after it", node.out("systemctl is-enabled larder.service"), "disabled")
    node.sh("systemctl enable -q larder.service")
    serves(t, node, "after the upgrade")
    is_sound(t, node, "after the upgrade")

    t.check("upgrade with another unit of the registries", put(node, packages.NEW), exits(0))
    serves(t, node, "after the upgrade of its unit")
    now = pids(node, *REGISTRIES)
    t.check("registries with the processes of before", [unit for unit in now if now[unit] == kept[unit]], [])
    t.check("downgrade", put(node, packages.OLD), exits(0))
    t.check("version", node.out("rpm -q --qf '%{VERSION}' larder"), packages.OLD)
    t.check("an edited file after the downgrade", node.out(f"tail -n 1 {SETTINGS}"), "# mine")
    serves(t, node, "after the downgrade")

    manifest = "/var/lib/larder/state/manifest.json"
    node.sh(f"mv {manifest} /root/manifest.json && echo broken > {manifest}")
    stuck = rpm(node, "-e larder")
    t.check("erasure where the manifest cannot be read", (stuck.code != 0, node.sh("rpm -q larder").code), (True, 0))
    node.sh(f"mv /root/manifest.json {manifest}")
    t.check("erasure", rpm(node, "-e larder"), exits(0))
    gone(t, node, "after the erasure")
    t.check("an edited file after the erasure", node.out(f"tail -n 1 {SETTINGS}.rpmsave"), "# mine")
    left = changed(before, snapshot(node))
    t.check("what else is left", [one for one in left if not one.split(" ", 1)[1].startswith(LEFT_BY_REMOVAL)], [])

    t.check("reinstallation", put(node, ours), exits(0))
    is_idle(t, node, "after the reinstallation")
    t.check("apply", node.larder("apply"), exits(0))
    serves(t, node, "after it")
    node.forget()
    t.check("pull of what was cached", node.pull(reference(UPSTREAMS[0])), pulled)
    t.check("erasure", rpm(node, "-e larder"), exits(0))
    node.sh("rm -rf /etc/larder /var/lib/larder")
    left = changed(before, snapshot(node))
    t.check("what is left", [one for one in left if one not in LEFT_BY_PURGE], [])
