"""Nobody is locked out, and nobody's address is taken, whoever manages the network of the machine."""

import re
import time

import ssh
from machine import changed, profile
from report import exits, has, lacks

HELD = "10.0.20.50"
VIEWS = {
    "networkd": "networkctl --no-pager status eth0 | head -25",
    "netplan": "netplan get; networkctl --no-pager status eth0 | head -25",
    "networkmanager": "nmcli -f GENERAL,IP4 device show eth0; nmcli connection show",
    "ifupdown": "cat /run/network/ifstate; ifquery eth0",
}
PLACES = ("/etc", "/var/lib/larder")
GUARD = "systemctl list-units --all --plain --no-legend 'larder-network-guard*'"
RECORD = "/var/lib/larder/state/network.json"


def run(t, manager, suites=("bookworm", "trixie")):
    for suite in suites:
        with t.part(suite):
            lab = t.lab(suite, manager)
            node = lab.machine("node")
            ssh.admit(lab, node)
            if manager in ("netplan", "ifupdown"):
                # By itself cloud-init has netplan match by the card's permanent address, which a veth has not got,
                # and wants ifupdown to ask for IPv6 too, which Debian 13 has no client for.
                node.put(
                    "/var/lib/cloud/seed/nocloud/network-config", "version: 2\nethernets: { eth0: { dhcp4: true } }\n"
                )
            node.boot()
            one(t, lab, node, manager)


def one(t, lab, node, manager):
    before = carries(node)
    own = re.search(r"inet ([\d.]+)/24", before).group(1)
    t.check("a lease before anything", before, has("dynamic"))
    session = ssh.Session(lab, own)
    try:
        held(t, lab, node)
        wrong_gateway(t, lab, node, manager, own, session)
        killed(t, node, manager, own, session)
        same_address(t, lab, node, manager, own, session)
    finally:
        session.close()
    booted(t, node, manager, own)


def network(address, gateway="10.0.20.1"):
    return profile(address=address, upstreams=("ghcr.io",), cache=False, containerd="").replace(
        "gateway: 10.0.20.1", f"gateway: {gateway}"
    )


def carries(node):
    return node.out("ip -4 -o addr show dev eth0; ip -4 route show default")


def view(t, node, manager, when):
    t.note(f"{manager}'s own view {when}:\n{node.out(VIEWS[manager])}")


def held(t, lab, node):
    """Another host of the network has the address."""
    lab.address(HELD)
    mac = lab("gw", "cat", "/sys/class/net/br0/address").strip()
    files, live = node.snapshot(*PLACES), carries(node)
    node.write("/root/held.yaml", network(HELD))
    said = node.larder("apply", "--profile", "/root/held.yaml")
    t.check("an address that another has: exit code", said, exits(2))
    t.check("an address that another has: it is named", said.out, has(HELD, mac))
    t.took("an address that another has", said.seconds, 10)
    t.check("an address that another has: files", changed(files, node.snapshot(*PLACES)), [])
    t.check("an address that another has: the network", without_lifetimes(carries(node)), without_lifetimes(live))


def without_lifetimes(text):
    return re.sub(r"valid_lft.*", "", text)


def wrong_gateway(t, lab, node, manager, own, session):
    """Run over ssh, whose connection hangs meanwhile."""
    node.write("/root/wrong.yaml", network("10.0.20.60", "10.0.20.99"))
    files = node.snapshot("--content", "/etc")
    seen = node.start("until [ -e /root/seen ]; do ip -4 -o addr show dev eth0; sleep 0.2; done | sort -u")
    started = time.monotonic()
    said = lab.ask(*ssh.command(lab, own, "larder", "apply", "--profile", "/root/wrong.yaml")[1:])
    t.check("a gateway that is not there: exit code", said, exits(1))
    t.took("a gateway that is not there", time.monotonic() - started, 30)
    t.check(
        "a gateway that is not there: what was tried",
        said.out,
        has("10.0.20.60/24", "10.0.20.99", "does not answer ARP", "everything is back as it was", own),
    )
    t.check("a gateway that is not there: the operator was warned", said.out, has(f"this ssh session came to {own}"))
    node.sh("touch /root/seen")
    back(t, node, manager, own, session, "a gateway that is not there")
    t.check("a gateway that is not there: files", changed(files, node.snapshot("--content", "/etc")), [])
    t.check("a gateway that is not there: it was tried", finish(seen), has("10.0.20.60/24"))
    t.note(said.out)


def finish(process):
    return process.communicate(timeout=120)[0]


def back(t, node, manager, own, session, what):
    t.check(f"{what}: address", node.wait(f"ip -4 -o addr show dev eth0 | grep -q 'inet {own}/24.*dynamic'", 5), exits(0))
    t.check(f"{what}: no other address", carries(node), lacks("10.0.20.6"))
    t.check(f"{what}: default route", carries(node), has("default via 10.0.20.1"))
    t.check(f"{what}: the ssh session that was open before", session.alive(60))
    t.check(f"{what}: nothing is armed any more", node.out(f"{GUARD}; ls {RECORD} 2>/dev/null"), "")
    view(t, node, manager, f"after {what}")


def kill(node):
    """`larder apply` of an address whose gateway is not there, killed between the change and its proof."""
    node.write("/root/killed.yaml", network("10.0.20.61", "10.0.20.99"))
    return node.sh("""
        larder apply --profile /root/killed.yaml > /root/killed.out 2>&1 & pid=$!
        until ip -4 -o addr show dev eth0 | grep -q 10.0.20.61/24; do
            kill -0 $pid || exit 3
            sleep 0.02
        done
        kill -9 $pid
        systemctl is-active larder-network-guard.timer""")


def killed(t, node, manager, own, session):
    files = node.snapshot("--content", "/etc")
    done = kill(node)
    t.check("kill -9 after the change: the guard is armed", done.out.strip().splitlines()[-1:], ["active"])
    started = time.monotonic()
    came = node.wait(f"ip -4 -o addr show dev eth0 | grep -q 'inet {own}/24' && test ! -e {RECORD}", 60)
    t.check("kill -9 after the change: the old address is back", came, exits(0))
    t.took("kill -9 after the change: back", time.monotonic() - started, 45)
    node.wait(f'test -z "$({GUARD})"', 10)
    back(t, node, manager, own, session, "kill -9 after the change")
    network_files = [
        line
        for line in changed(files, node.snapshot("--content", "/etc"))
        if re.search("network|netplan|NetworkManager|resolv.conf", line) and "/etc/systemd/system" not in line
    ]
    t.check("kill -9 after the change: files of the network", network_files, [])
    t.note(node.out("journalctl -b --no-pager -o short-precise -u larder-network-guard.service | tail -8"))


def booted(t, node, manager, own):
    """It dies, and a boot comes before the timer: the manager would come up with what was never proven."""
    done = kill(node)
    t.check("a boot before the timer: the guard was armed", done.out.strip().splitlines()[-1:], ["active"])
    node.reboot()
    t.check("a boot before the timer: the address is what was proven last", carries(node), has(f"inet {own}/24", "default via 10.0.20.1"))
    t.check("a boot before the timer: no other", carries(node), lacks("10.0.20.6", "dynamic"))
    t.check("a boot before the timer: nothing is left", node.out(f"{GUARD}; ls {RECORD} 2>/dev/null"), "")
    t.check("a boot before the timer: larder.service", node.wait("systemctl is-active larder.service", 30).out.strip(), "active")
    t.check("a boot before the timer: plan", node.larder("plan"), exits(0))
    view(t, node, manager, "after a boot before the timer")


def same_address(t, lab, node, manager, own, session):
    """The address stays, and every connection with it; a second run changes nothing."""
    node.write("/etc/larder/profile.yaml", network(own))
    said = lab.ask(*ssh.command(lab, own, "larder", "apply")[1:])
    t.check("the lease's own address, for good: exit code", said, exits(0))
    t.check("the lease's own address, for good: no warning of the session", said.out, lacks("ssh session"))
    t.check("the lease's own address, for good: it does not expire", carries(node), lacks("dynamic"))
    t.check("the lease's own address, for good: the ssh session", session.alive(60))
    t.check("the lease's own address, for good: nothing is armed", node.out(f"{GUARD}; ls {RECORD} 2>/dev/null"), "")
    files = node.snapshot(*PLACES)
    again = node.larder("apply")
    t.check("a second run: exit code", again, exits(0))
    t.check("a second run: files", changed(files, node.snapshot(*PLACES)), [])
    view(t, node, manager, "after the lease's own address, for good")
