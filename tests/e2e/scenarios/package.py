"""The .deb, on one Debian: what dpkg does with it, and what that does to the machine."""

import os

import packages
from machine import changed, profile
from report import exits, has, lacks
from scenarios.common import pulled, push, reference

UPSTREAMS = ("docker.io", "ghcr.io")
REGISTRIES = [f"larder-registry@{upstream}.service" for upstream in UPSTREAMS]
PROFILE = "/etc/larder/profile.yaml"
SETTINGS = "/etc/larder/package.conf"
# Changed by what runs in any machine, and by dpkg itself.
NOISE = (
    "/etc/.pwd.lock", "/etc/machine-id", "/etc/resolv.conf", "/etc/ld.so.cache", "/etc/adjtime", "/etc/subuid", "/etc/subgid",
    "/var/lib/dpkg", "/var/lib/rpm", "/var/lib/systemd", "/var/lib/containerd", "/var/lib/private", "/var/lib/cloud", "/var/lib/dbus",
)  # fmt: skip
TREES = ("/etc", "/usr", "/var/lib")


def packaged(node, *versions):
    """A machine with the packages beside it, and without the program that the others have."""
    del node.files["/usr/local/bin/larder"]
    folder = packages.build(node.lab.larder)
    for version in versions:
        node.put(f"/root/{packages.deb(version)}", source=os.path.join(folder, packages.deb(version)))


def dpkg(node, *arguments):
    return node.sh(f"DEBIAN_FRONTEND=noninteractive dpkg {' '.join(arguments)} </dev/null", timeout=400)


def install(node, version):
    return dpkg(node, "--force-confold", "-i", f"/root/{packages.deb(version)}")


def pids(node, *units):
    return {unit: node.show(unit, "MainPID").get("MainPID") for unit in units}


def snapshot(node):
    return {
        path: what
        for path, what in node.snapshot("--content", *TREES).items()
        if not path.startswith(NOISE) and not path.endswith("-") and path not in TREES
    }


def is_idle(t, node, when, enabled="enabled"):
    """Installed, and nothing of it runs."""
    t.check(f"larder.service {when}", node.out("systemctl is-enabled larder.service"), enabled)
    running = "systemctl list-units --all --plain --no-legend 'larder*' | awk '$3 != \"inactive\"'"
    t.check(f"units that run {when}", node.out(running), "")
    others = "systemctl list-unit-files --no-legend 'larder*' | awk '$2 == \"enabled\" { print $1 }'"
    t.check(f"units that are enabled {when}", node.out(others), "larder.service" if enabled == "enabled" else "")
    t.check(f"failed units {when}", node.out("systemctl --failed --no-legend --plain"), "")


def is_sound(t, node, when):
    t.check(f"dpkg --audit {when}", node.out("dpkg --audit"), "")
    # But for the operator's change of package.conf; the images have no man pages.
    altered = f"dpkg --verify larder | grep -vE ' ({SETTINGS}|/usr/share/man/.*)$'"
    t.check(f"dpkg --verify {when}", node.out(altered), "")


def serves(t, node, when):
    # Of several at once it says that one of them is.
    for unit in REGISTRIES:
        t.check(f"{unit} {when}", node.wait(f"systemctl is-active {unit}", 90).out.strip(), "active")
    t.check(f"plan {when}", node.larder("plan"), exits(0))
    t.check(f"pull {when}", node.pull(reference(UPSTREAMS[0])), pulled)


def run(t, suite):
    lab = t.lab(suite)
    push(lab, "1", upstreams=UPSTREAMS)
    node = lab.machine("node")
    ours = packages.version()
    packaged(node, packages.OLD, ours, packages.NEW)
    node.boot()
    before = snapshot(node)

    # ---- nothing starts by surprise: neither without a profile, nor at the next boot
    t.check("install", install(node, packages.OLD), exits(0))
    is_idle(t, node, "after the installation")
    is_sound(t, node, "after the installation")
    t.check("user", node.out("getent passwd larder"), has("/var/lib/larder", "nologin"))
    t.check("folders", node.out("stat -c '%a %U %n' /etc/larder /etc/larder/*"), has("700 root /etc/larder/secrets", "755 root /etc/larder/profile.d"))
    # Not those that are whole only with a drop-in of a profile's, and there is no nftables.
    units = "ls -p | grep '^larder.*[a-z]$' | grep -vE 'socket|larder-tls.path' | sed s/@[.]/@docker.io./"
    verified = node.out(f"cd /usr/lib/systemd/system && systemd-analyze verify --man=no $({units}) 2>&1 | grep -v 'Command nft '")
    t.check("systemd-analyze verify", verified, "")
    t.check("start without a profile", node.sh("systemctl start larder.service"), exits(0))
    is_idle(t, node, "after a start without a profile")

    # ---- provisioned by the packaged units
    node.write(PROFILE, profile(upstreams=UPSTREAMS))
    t.check("start with a profile", node.sh("systemctl start larder.service"), exits(0))
    serves(t, node, "after the start")
    t.check("unit files of its own", node.out("find /etc/systemd/system -maxdepth 1 -type f -name 'larder*'"), "")
    for upstream in UPSTREAMS:
        t.check(f"{upstream}: pull", node.pull(reference(upstream)), pulled)

    # ---- an upgrade keeps settings, and restarts only what must
    node.sh(f"echo '# mine' >> {SETTINGS}; systemctl disable -q larder.service")
    kept = pids(node, *REGISTRIES, "containerd.service")
    t.check("upgrade", install(node, ours), exits(0))
    t.check("an edited conffile after the upgrade", node.out(f"tail -n 1 {SETTINGS}"), "# mine")
    t.check("the package's beside it", node.out(f"cat {SETTINGS}.dpkg-dist"), lacks("older text"))
    t.check("processes of registries and containerd", pids(node, *REGISTRIES, "containerd.service"), kept)
    t.check("a switched off larder.service after the upgrade", node.out("systemctl is-enabled larder.service"), "disabled")
    t.check("units that wait for a reload", node.out("systemctl show 'larder*' -p NeedDaemonReload --value | grep yes"), "")
    node.sh("systemctl enable -q larder.service")
    serves(t, node, "after the upgrade")
    is_sound(t, node, "after the upgrade")

    t.check("upgrade with another unit of the registries", install(node, packages.NEW), exits(0))
    t.check("registries with the processes of before", [unit for unit, pid in pids(node, *REGISTRIES).items() if pid == kept[unit]], [])
    serves(t, node, "after the upgrade of its unit")
    t.check("downgrade", install(node, packages.OLD), exits(0))
    t.check("version", node.out("dpkg-query -W -f '${Version}' larder"), packages.OLD)
    t.check("an edited conffile after the downgrade", node.out(f"tail -n 1 {SETTINGS}"), "# mine")
    serves(t, node, "after the downgrade")
    is_sound(t, node, "after the downgrade")

    # ---- a machine that cannot be given back keeps its package, until it is said that it may go as it is
    manifest = "/var/lib/larder/state/manifest.json"
    node.sh(f"mv {manifest} /root/manifest.json && echo broken > {manifest}")
    stuck = dpkg(node, "-r", "larder")
    t.check("removal where the manifest cannot be read", stuck, exits(1))
    t.check("what it says", stuck.out, has("could not be given back", "ON_REMOVE=stop"))
    t.check("status after it", node.out("dpkg-query -W -f '${Status}' larder"), has("ok installed"))
    node.sh(f"mv /root/manifest.json {manifest}")
    serves(t, node, "after the refused removal")

    # ---- removal gives the machine back; the profile and what is cached stay
    t.check("removal", dpkg(node, "-r", "larder"), exits(0))
    gone(t, node, "after the removal")
    stores = " ".join(f"/var/lib/larder/{upstream}/docker" for upstream in UPSTREAMS)
    t.check("stores after the removal", node.sh(f"ls -d {stores}"), exits(0))
    t.check("profile after the removal", node.out(f"head -n 1 {PROFILE}"), "version: 1")
    left = changed(before, snapshot(node))
    t.check("what else is left", [one for one in left if not one.split(" ", 1)[1].startswith(LEFT_BY_REMOVAL)], [])

    # ---- reinstalled, nothing starts by surprise: the profile is there, and waits
    t.check("reinstallation", install(node, ours), exits(0))
    is_idle(t, node, "after the reinstallation")
    mark = lab.upstream.mark()
    t.check("apply", node.larder("apply"), exits(0))
    serves(t, node, "after it")
    node.forget()
    for upstream in UPSTREAMS:
        t.check(f"{upstream}: pull of what was cached", node.pull(reference(upstream)), pulled)
        blobs = [path for path, _ in lab.upstream.requests(mark, upstream) if "/blobs/" in path]
        t.check(f"{upstream}: blobs that it served again", blobs, [])

    # ---- a purge leaves nothing
    t.check("purge", dpkg(node, "--purge", "larder"), exits(0))
    gone(t, node, "after the purge")
    left = changed(before, snapshot(node))
    t.check("what is left", [one for one in left if one not in LEFT_BY_PURGE], [])
    # Not what the tests' machines put beside units.
    named = "find / -xdev -name '*larder*' -not -path '/proc/*' -not -path '/root/*' -not -name '*.service.d'"
    t.check("paths that say larder", node.out(named), "")

    # ---- in an image that is not booted, and with what an operator has said before
    node.stop()
    node.lab("mounted", node.name, node.lab.image, "sh", "-ec", IMAGE, "_", packages.deb(ours))
    node.put("/etc/systemd/system/larder.service.d/seen.conf", "[Service]\nExecStartPost=/bin/touch /root/started\n")
    node.put(PROFILE, profile(upstreams=UPSTREAMS))
    node.boot()
    t.check("larder.service of an image that got the package", node.out("systemctl is-enabled larder.service"), "enabled")
    serves(t, node, "after the boot of such an image")


# A chroot without anything that runs, where nothing may be started.
IMAGE = """
printf '#!/bin/sh\\necho "$@" >> /root/policy\\nexit 101\\n' > "$ROOT/usr/sbin/policy-rc.d"; chmod 755 "$ROOT/usr/sbin/policy-rc.d"
chroot "$ROOT" dpkg -i "/root/$1"
chroot "$ROOT" dpkg -r larder
chroot "$ROOT" dpkg -i "/root/$1"
rm "$ROOT/usr/sbin/policy-rc.d"
"""
# The user, as Debian leaves it.
LEFT_BY_PURGE = tuple(f"changed /etc/{name}" for name in ("passwd", "shadow", "group", "gshadow"))
LEFT_BY_REMOVAL = (*(one.split(" ")[1] for one in LEFT_BY_PURGE), "/etc/larder", "/var/lib/larder")


def gone(t, node, when):
    t.check(f"units {when}", node.out("systemctl list-units --all --plain --no-legend 'larder*'"), "")
    t.check(f"failed units {when}", node.out("systemctl --failed --no-legend --plain"), "")
    t.check(f"processes {when}", node.out("pgrep -x larder; pgrep -af '[s]erve /etc/larder'"), "")
    t.check(f"links that lead nowhere {when}", node.out("find /etc/systemd /usr/lib/systemd -xtype l -name '*larder*'"), "")
    t.check(f"pull {when}", node.pull(reference(UPSTREAMS[0])), pulled)
    t.check(f"address {when}", node.out("ip -4 -o addr show dev eth0"), has("dynamic"))
    t.check(f"dpkg --audit {when}", node.out("dpkg --audit"), "")
