"""The address is there already, by somebody else's file: that is no change, and stays so."""

from machine import profile
from report import exits, has, lacks
from scenarios.common import second_apply_changes_nothing

BY_HAND = """[Match]
Name=eth0

[Network]
Address=10.0.20.10/24
Gateway=10.0.20.1
DNS=10.0.20.1
"""


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    node.put("/etc/systemd/network/05-by-hand.network", BY_HAND)
    node.boot()
    node.write("/etc/larder/profile.yaml", profile())
    t.check("plan of the network", node.larder("plan").out, lacks(".network", "cloud.cfg.d"))
    t.check("exit code", node.larder("apply"), exits(0))
    t.check("the address is proven all the same", node.out("cat /run/larder/status.json"), has("10.0.20.10/24 on eth0"))
    t.check("network files of ours", node.out("ls /etc/systemd/network /etc/cloud/cloud.cfg.d | grep larder"), "")
    second_apply_changes_nothing(t, node)
    node.reboot()
    t.check("verify after a reboot", node.wait("larder verify", 60), exits(0))

    # Another address: networkd takes the first file that matches, and this one sorts before Larder's.
    node.write("/etc/larder/profile.yaml", profile(address="10.0.20.11"))
    refused = node.larder("apply")
    t.check("exit code where another file would win", refused, exits(2))
    t.check("what it says", refused.out, has("/etc/systemd/network/05-by-hand.network"))
    node.sh("cd /etc/systemd/network && mv 05-by-hand.network 10-by-hand.network && networkctl reload")
    node.wait("grep -q 10-by-hand /run/systemd/netif/links/*", 10)
    t.check("exit code where it would not", node.larder("apply"), exits(0))
    t.check("address after it", node.out("ip -4 -o addr show dev eth0"), has("10.0.20.11/24"))
    t.check("address before it", node.out("ip -4 -o addr show dev eth0"), lacks("10.0.20.10/24"))
    t.check("the file of somebody else", node.out("cat /etc/systemd/network/10-by-hand.network"), BY_HAND.strip())
