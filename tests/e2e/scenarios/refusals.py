"""What cannot be done safely is refused: exit 2, the place named, nothing touched."""

from machine import changed, profile
from report import exits, has
from scenarios.common import WATCHED, units

LEGACY = """
  [plugins."io.containerd.grpc.v1.cri".registry]
    [plugins."io.containerd.grpc.v1.cri".registry.mirrors]
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
        endpoint = ["https://mirror.example.com"]
"""
CONFIG = "/etc/containerd/config.toml"


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    node.boot()
    address = node.out("ip -4 -o addr show dev eth0 | awk '{print $4}'")
    pristine = node.out(f"cat {CONFIG}") + "\n"
    node.write("/etc/larder/profile.yaml", profile())

    line = len((pristine + LEGACY).split('registry.mirrors."docker.io"')[0].splitlines())
    refuses(t, node, "old mirrors in containerd's config.toml", pristine + LEGACY, "config.toml", str(line), "mirrors")
    refuses(t, node, "a config.toml that is no TOML", pristine + "[plugins\n", "config.toml")
    node.write(CONFIG, pristine)
    node.write("/etc/larder/profile.yaml", profile().replace("port: 5010", "prot: 5010"))
    refuses(t, node, "a key that no profile has", None, "profile.yaml:4", "prot", "port")
    node.write("/etc/larder/profile.yaml", profile())
    node.start("python3 -m http.server 5010")
    node.wait("ss -Hltn sport = :5010 | grep -q .", 10)
    refuses(t, node, "a port that somebody has", None, "port 5010", "python3")
    node.sh("pkill -f http.server")
    t.check("address all the while", node.out("ip -4 -o addr show dev eth0 | awk '{print $4}'"), address)
    t.check("exit code once all is well", node.larder("apply"), exits(0))


def refuses(t, node, what, config, *named):
    if config is not None:
        node.write(CONFIG, config)
    files, running = node.snapshot(*WATCHED), units(node)
    said = node.larder("apply")
    t.check(f"{what}: exit code", said, exits(2))
    t.check(f"{what}: what it says", said.out, has(*named))
    t.check(f"{what}: files touched", changed(files, node.snapshot(*WATCHED)), [])
    t.check(f"{what}: units touched", changed(running, units(node)), [])
