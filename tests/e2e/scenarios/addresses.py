"""The static address with one manager of the network, on one Debian machine after the other."""

import concurrent.futures

from machine import profile
from report import exits, has, lacks
from scenarios.common import has_its_address, no_cycles, second_apply_changes_nothing

UPSTREAM = ("docker.io",)
# Everything that the renderers know.
WHOLE = """version: 1
upstreams: { docker.io: { port: 5000 } }
network:
  interface: eth0
  addresses: [10.0.20.11/24, "fd00:20::11/64"]
  routes:
    - { to: default, via: 10.0.20.1 }
    - { to: 10.9.0.0/16, via: 10.0.20.1 }
    - { to: default, via: "fd00:20::1" }
    - { to: "fd00:9::/48", via: "fd00:20::1" }
  nameservers: { addresses: [10.0.20.1], search: [lab.test] }
  mtu: 1400
cache: {}
"""
# As a hypervisor's form for the address writes it (Proxmox: cloud-init's version 1).
GIVEN = """version: 1
config:
  - type: physical
    name: eth0
    subnets: [{ type: static, address: 10.0.20.12, netmask: 255.255.255.0, gateway: 10.0.20.1 }]
"""
WITHOUT_NAMES = """version: 1
network: { interface: eth0, addresses: [10.0.20.12/24], gateway: 10.0.20.1 }
"""
BAKED = """version: 1
network: { addresses: [10.0.20.13/24], gateway: 10.0.20.1, nameservers: { addresses: [10.0.20.1] } }
"""


class Manager:
    """What differs from one manager to the other."""

    def __init__(self, flavour, file, view, parsed, cloud_init, plug="true"):
        self.flavour = flavour
        self.file = file  # ours
        self.view = view  # a command: what it says of the link itself
        self.parsed = parsed  # a command that has it read our file, and what has to be in its words
        self.cloud_init = cloud_init  # cloud-init's file for it
        self.plug = plug  # what a kernel's event of a new card does, which a container does not get


NETWORKD = Manager(
    "networkd",
    "/etc/systemd/network/05-larder-eth0.network",
    "networkctl status --no-pager --lines=0 eth0",
    (
        "networkctl status --no-pager --lines=0 eth0; resolvectl --no-pager status eth0; ip route; ip -6 route; ip link show eth0",
        ("/etc/systemd/network/05-larder-eth0.network", "10.0.20.11", "fd00:20::11", "10.9.0.0/16", "fd00:9::/48", "lab.test", "mtu 1400"),
    ),
    "/etc/systemd/network/10-cloud-init-eth0.network",
)
NETPLAN = Manager(
    "netplan",
    "/etc/netplan/90-larder-eth0.yaml",
    "netplan status eth0 2>/dev/null || networkctl status --no-pager --lines=0 eth0",
    (
        "mkdir -p /tmp/r/etc && cp -a /etc/netplan /tmp/r/etc/ && netplan generate --root-dir /tmp/r 2>&1"
        " && cat /tmp/r/run/systemd/network/*",
        ("Address=10.0.20.11/24", "Address=fd00:20::11/64", "10.9.0.0/16", "fd00:9::/48", "DNS=10.0.20.1", "Domains=lab.test", "MTUBytes=1400"),
    ),
    "/etc/netplan/50-cloud-init.yaml",
)
NETWORKMANAGER = Manager(
    "networkmanager",
    "/etc/NetworkManager/system-connections/larder-eth0.nmconnection",
    "nmcli device show eth0",
    (
        "nmcli -f all connection show larder-eth0",
        ("10.0.20.11/24", "fd00:20::11/64", "10.9.0.0/16", "fd00:9::/48", "lab.test", "1400", "999"),
    ),
    "/etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection",
)
IFUPDOWN = Manager(
    "ifupdown",
    "/etc/network/interfaces.d/larder-eth0",
    "ifquery --state; cat /run/network/ifstate; ip addr show eth0; cat /etc/resolv.conf",
    (
        "ifquery eth0; cat /etc/resolv.conf",
        ("address: 10.0.20.11", "address: fd00:20::11", "10.9.0.0/16", "fd00:9::/48", "search lab.test", "mtu: 1400"),
    ),
    "/etc/network/interfaces.d/50-cloud-init",
    # What udev's rule runs when a card goes and when one comes.
    "ifdown --force eth0; ifup --allow=hotplug eth0",
)


def run(t, manager, suites=("bookworm", "trixie")):
    for suite in suites:
        with t.part(suite):
            on(t, manager, suite)


def on(t, manager, suite):
    lab = t.lab(suite, manager.flavour)
    lab("gw", "ip", "addr", "add", "fd00:20::1/64", "dev", "br0", "nodad")
    node, given, baked = (lab.machine(name) for name in ("node", "given", "baked"))
    node.apply_at_boot(profile(upstreams=UPSTREAM, containerd=False))
    if manager is NETPLAN:
        # By itself cloud-init matches by the card's permanent address, which a veth has not got.
        node.put("/var/lib/cloud/seed/nocloud/network-config", "version: 2\nethernets: { eth0: { dhcp4: true } }\n")
    given.put("/var/lib/cloud/seed/nocloud/network-config", GIVEN)
    bake(t, lab, baked, cloud_init=suite == "bookworm")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: one.boot(), (node, given, baked)))
    first_boot(t, lab, manager, baked)
    right_already(t, manager, given)
    for machine in (given, baked):
        machine.stop()
    from_dhcp(t, manager, node)
    to_another(t, lab, manager, node)
    after_a_boot(t, lab, manager, node)
    late(t, lab, manager, node)
    by_its_unit(t, node)


def view(t, manager, node, when):
    t.note(f"{node.name} {when}, as {manager.flavour} sees it:\n{node.out(manager.view)}")


def names(t, node, when):
    t.check(f"names are found {when}", node.wait("getent hosts quay.io", 20).out, has("10.0.20.1"))


def from_dhcp(t, manager, node):
    """cloud-init had DHCP written for the manager, and ran `larder apply`."""
    t.check("address before", node.out("cat /root/address.before"), has("dynamic"))
    t.check("exit code of `larder apply` in runcmd", node.out("cat /root/apply.code"), "0")
    t.check("file of ours", node.out(f"ls {manager.file}"), manager.file)
    has_its_address(t, node, "from runcmd")
    names(t, node, "from runcmd")
    view(t, manager, node, "from runcmd")
    second_apply_changes_nothing(t, node)


def to_another(t, lab, manager, node):
    node.write("/etc/larder/profile.yaml", WHOLE)
    t.check("another address: exit code", node.larder("apply"), exits(0))
    has_its_address(t, node, "after another", "10.0.20.11")
    t.check("the old address", node.out("ip -4 -o addr show dev eth0"), lacks("10.0.20.10"))
    t.check("the registry listens on the new one", node.wait("ss -Hltn | grep -q 10.0.20.11:5000", 10), exits(0))
    t.check("IPv6 from outside", lab.ask("gwroot", lab.image, "ping", "-6", "-c1", "-W5", "fd00:20::11"), exits(0))
    names(t, node, "after another")
    command, words = manager.parsed
    t.check("our file, as it reads it", node.out(command), has(*words))
    second_apply_changes_nothing(t, node)


def after_a_boot(t, lab, manager, node):
    """A boot that is a new instance to cloud-init, which would write its own network file anew."""
    before = node.out(f"cat {manager.cloud_init}")
    node.stop()
    node.seed("#cloud-config\n{}\n", instance="i-another")
    mark = size(lab)
    node.boot()
    t.check("cloud-init saw a new instance", node.out("cloud-init query instance_id"), "i-another")
    t.check("cloud-init's own file after a new instance", node.out(f"cat {manager.cloud_init}"), before)
    t.check("failed units", node.out("systemctl --failed --no-legend --plain"), "")
    no_cycles(t, node, "a boot")
    has_its_address(t, node, "after a boot", "10.0.20.11")
    t.check("what asked for DHCP", asked(lab, mark, node), "")
    names(t, node, "after a boot")
    view(t, manager, node, "after a boot")
    t.check("plan after a boot", node.larder("plan"), exits(0))
    t.check("verify after a boot", node.wait("larder verify", 20), exits(0))


def late(t, lab, manager, node):
    """The card goes, and another comes: its manager takes it up with what we wrote."""
    lab("gw", "ip", "link", "del", f"p-{node.name}")
    # It waits for the address as long as a proof may take.
    node.write("/etc/larder/profile.yaml", WHOLE + "verify: { timeout: 3s }\n")
    gone = node.larder("apply")
    node.write("/etc/larder/profile.yaml", WHOLE)
    t.check("exit code while the interface is not there", gone, exits(4))
    t.check("what it says", gone.out, has("there is no eth0"))
    lab("plug", node.name)
    node.sh(manager.plug)
    t.check("its address once it is there", node.wait("ip -4 -o addr show dev eth0 | grep -q 10.0.20.11/24", 20), exits(0))
    t.check("verify", node.wait("larder verify", 20), exits(0))
    t.check("plan", node.larder("plan"), exits(0))


def by_its_unit(t, node):
    """larder.service is in a sandbox: what the manager runs is outside of it."""
    node.write("/etc/larder/profile.yaml", WHOLE.replace("20.11", "20.15"))
    t.check("another address by larder.service", node.sh("systemctl restart larder.service"), exits(0))
    done = node.wait('test "$(systemctl show -P SubState larder.service)" = exited', 60)
    t.check("its end", done, exits(0))
    has_its_address(t, node, "by larder.service", "10.0.20.15")
    t.check("plan after larder.service", node.larder("plan"), exits(0))
    again = node.sh("journalctl -b -q --no-pager -u larder.service | grep -i 'not permitted\\|read-only\\|denied'")
    t.check("what its sandbox was in the way of", again.out, "")


def right_already(t, manager, node):
    """The hypervisor had cloud-init write the very address."""
    view(t, manager, node, "with the address from cloud-init")
    has_its_address(t, node, "from cloud-init", "10.0.20.12")
    node.write("/etc/larder/profile.yaml", WITHOUT_NAMES)
    t.check("exit code when all is right", node.larder("apply"), exits(0))
    t.check("files of ours for the network", node.out(f"ls {manager.file} /etc/cloud/cloud.cfg.d 2>/dev/null | grep larder"), "")
    second_apply_changes_nothing(t, node)
    node.write("/etc/larder/profile.yaml", WITHOUT_NAMES.replace("20.12", "20.14"))
    t.check("another than cloud-init's: exit code", node.larder("apply"), exits(0))
    has_its_address(t, node, "after another than cloud-init's", "10.0.20.14")


def bake(t, lab, node, cloud_init):
    """An image whose interface only the machine itself knows."""
    if not cloud_init:
        node.put("/etc/cloud/cloud-init.disabled", "")
    node.put("/etc/larder/profile.yaml", BAKED)
    node.lay()
    applied = lab.ask("mounted", node.name, "sh", "-c", f'"{lab.larder}" apply --root "$ROOT"')
    t.check("image: exit code of `larder apply --root`", applied, exits(0))


def first_boot(t, lab, manager, node):
    has_its_address(t, node, "at the image's first boot", "10.0.20.13")
    t.check("what asked for DHCP", asked(lab, 0, node), "")
    names(t, node, "at the image's first boot")
    t.check("failed units at the image's first boot", node.out("systemctl --failed --no-legend --plain"), "")
    no_cycles(t, node, "the image's first boot")
    view(t, manager, node, "at the image's first boot")
    t.check("plan at the image's first boot", node.larder("plan"), exits(0))


def size(lab):
    with open(f"{lab.directory}/gateway.log", encoding="utf-8", errors="replace") as log:
        return len(log.read())


def asked(lab, mark, node):
    """What the DHCP server heard from a machine."""
    with open(f"{lab.directory}/gateway.log", encoding="utf-8", errors="replace") as log:
        heard = log.read()[mark:]
    mac = node.out("cat /sys/class/net/eth0/address")
    return "\n".join(line for line in heard.splitlines() if "DHCP" in line and mac in line)
