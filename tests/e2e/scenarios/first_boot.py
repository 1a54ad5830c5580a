"""larder.service at boot: when it runs, what waits for it and what does not, what it heals and what it costs."""

import json

from debian import package
from machine import changed
from report import exits, has
from scenarios.cloud_init import shipped, status
from scenarios.common import WATCHED, has_its_address, no_cycles, units_run

UPSTREAMS = ("docker.io", "ghcr.io")
HOSTS = "/etc/containerd/certs.d/ghcr.io/hosts.toml"
KUBELET = """[Unit]
Description=A kubelet, as far as its place in the boot
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
"""
# The image's own layer: the address is there before the network is.
NETWORK = """version: 1
network:
  interface: eth0
  addresses: [10.0.20.10/24]
  gateway: 10.0.20.1
  nameservers: { addresses: [10.0.20.1] }
"""
# systemd's own for "Starting …" and "Started …" (sd-messages.h).
STARTING, STARTED = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"
# What must not hang there: another run, and the unit itself.
RUNCMD = """
  - [sh, -c, "timeout 100 systemctl restart larder.service; echo $? > /root/restart.code"]
  - [sh, -c, "larder apply > /root/apply.out 2>&1; echo $? > /root/apply.code"]
"""


def run(t):
    rows = []
    for suite in ("bookworm", "trixie", "forky"):
        with t.part(suite):
            lab = t.lab(suite)
            node = bake(t, lab)
            rows += boots(t, suite, node)
    t.note("first and second boot of a baked cache and client, in seconds of userspace (larder: start to ready)")
    t.note("suite     boot    network-online  larder-network  larder  its share  multi-user")
    for row in rows:
        t.note("{:<9} {:<7} {:>14.1f} {:>15.2f} {:>7.2f} {:>9.0%} {:>11.1f}".format(*row))


def bake(t, lab):
    """An image with the package and the profile, provisioned as a tree; cloud-init runs larder once more."""
    node = lab.machine("node")
    del node.files["/usr/local/bin/larder"]
    node.put("/root/larder.deb", source=package(lab.larder))
    node.put("/etc/systemd/system/kubelet.service", KUBELET)
    node.put("/etc/larder/profile.yaml", shipped_profile(), mode=0o600)
    node.put("/etc/larder/profile.d/10-network.yaml", NETWORK, mode=0o600)
    node.commands.append("dpkg --install /root/larder.deb >/dev/null; systemctl -q enable kubelet")
    node.lay()
    applied = lab.ask("mounted", node.name, "sh", "-c", f'"{lab.larder}" apply --root "$ROOT"')
    t.check("apply --root", applied, exits(0))
    node.seed(shipped("both.yaml") + RUNCMD.lstrip("\n"))
    return node


def shipped_profile():
    """What both.yaml brings: the same in the image, so that its first boot has nothing to write."""
    text = shipped("both.yaml").split("content: |\n")[1].split("\n\n")[0]
    return "".join(line[6:] + "\n" for line in text.splitlines())


def boots(t, suite, node):
    rows = []
    node.boot()
    rows.append((suite, "first", *measured(t, node, "first boot")))
    t.check("first boot: larder.service", node.out("journalctl -b -u larder --output cat"), has("nothing to change"))
    for what in ("restart", "apply"):
        t.check(f"first boot: exit code of the {what} in runcmd", node.out(f"cat /root/{what}.code"), "0")
    t.check("first boot: what the apply in runcmd says", node.out("cat /root/apply.out"), has("nothing to change"))
    t.check("first boot: cloud-init", status(node)["errors"], [])

    before = node.snapshot(*WATCHED)
    node.reboot()
    rows.append((suite, "second", *measured(t, node, "second boot")))
    wrote = [line for line in changed(before, node.snapshot(*WATCHED)) if "larder" in line or "containerd" in line]
    t.check("second boot: files that it wrote", wrote, [])
    if suite == "bookworm":
        heals(t, node)
    return rows


def measured(t, node, when):
    """Ready before who depends on it, after what it depends on; the figures for the table."""
    node.wait("test $(systemctl show -P SubState larder.service) != running", 60)
    unit = node.show("larder.service", "ActiveState", "Result")
    t.check(f"{when}: larder.service", unit, {"ActiveState": "active", "Result": "success"})
    t.check(f"{when}: failed units", node.out("systemctl --failed --no-legend --plain"), "")
    no_cycles(t, node, when)
    units_run(t, node, when, UPSTREAMS)
    has_its_address(t, node, f"at the {when}")
    began, ready = at(node, "InactiveExit", "larder.service"), at(node, "ActiveEnter", "larder.service")
    # In the first boot runcmd has restarted it since, after all of these.
    if when != "first boot":
        for unit in ("containerd.service", "kubelet.service", "multi-user.target"):
            t.check(f"{when}: {unit} waits until larder is ready", at(node, "InactiveExit", unit) >= ready)
    for unit in ("systemd-networkd-wait-online.service", "cloud-init.service", "cloud-init-network.service", "larder-network.service"):
        if node.show(unit, "LoadState", "ActiveState") == {"LoadState": "loaded", "ActiveState": "active"}:
            t.check(f"{when}: larder waits for {unit}", at(node, "ActiveEnter", unit) <= began)
    early = (at(node, "InactiveExit", "larder-network.service"), at(node, "ActiveEnter", "larder-network.service"))
    t.note(f"{when}:\n" + node.out("systemd-analyze critical-chain --no-pager larder.service | grep -v '^The\\|^$'"))
    t.note(node.out("systemd-analyze critical-chain --no-pager multi-user.target | grep -v '^The\\|^$' | head -n6"))
    t.note(node.out("systemd-analyze blame --no-pager | grep -n larder | head -n4"))
    start = float(node.out("systemctl show -P UserspaceTimestampMonotonic")) / 1e6
    whole = at(node, "ActiveEnter", "multi-user.target") - start
    took = blamed(node)
    return at(node, "ActiveEnter", "network-online.target") - start, early[1] - early[0], took, took / whole, whole


def blamed(node):
    """Seconds from the first start of larder.service in this boot until it was ready."""
    words = " ".join(f"MESSAGE_ID={word}" for word in (STARTING, STARTED))
    said = node.out(f"journalctl -b -o json --no-pager UNIT=larder.service {words} | head -n2").splitlines()
    begun, ready = (int(json.loads(line)["__MONOTONIC_TIMESTAMP"]) for line in said)
    return (ready - begun) / 1e6


def at(node, when, unit):
    return float(node.show(unit, f"{when}TimestampMonotonic").get(f"{when}TimestampMonotonic") or 0) / 1e6


def heals(t, node):
    """What was changed while the machine was off is right again when it has booted, and what was there is kept."""
    right = node.out(f"cat {HOSTS}")
    node.stop()
    node.put(HOSTS, "# by hand\n")
    node.commands.append("rm /etc/larder/registry/docker.io.yml; systemctl -q disable larder-registry@ghcr.io.service")
    node.boot()
    t.check("drift: a file changed by hand", node.out(f"cat {HOSTS}"), right)
    t.check("drift: what was by hand", node.out(f"cat /var/lib/larder/state/kept{HOSTS}*"), has("# by hand"))
    units_run(t, node, "after drift", UPSTREAMS)
    t.check("drift: verify", node.larder("verify"), exits(0))
    t.check("drift: plan", node.larder("plan"), exits(0))
