"""Something fails half-way on a live machine: everything is as it was, and the exit code says so."""

from machine import changed, profile
from report import exits, has

SECONDS = 300  # containerd is given a minute to come back, twice

# A containerd that does not start with the setting that Larder makes; `config dump` sees nothing wrong.
BREAKS = """[Service]
ExecStartPre=/bin/sh -c '! grep -q certs.d /etc/containerd/config.toml'
"""


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    node.boot()
    address = node.out("ip -4 -o addr show dev eth0 | awk '{print $4}'")
    node.write("/etc/systemd/system/containerd.service.d/breaks.conf", BREAKS)
    node.sh("systemctl daemon-reload")
    node.write("/etc/larder/profile.yaml", profile())
    # The first run makes the system user; an account is not taken back.
    node.sh("systemd-sysusers --inline 'u larder -'")
    before = places(node)
    config = node.out("cat /etc/containerd/config.toml") + "\n"
    # What Larder knows of is refused before anything is touched; this, only containerd's own reader knows.
    node.write("/etc/containerd/config.toml", config + '\n[debug]\n  uid = "root"\n')
    untouched = places(node)
    said = node.larder("apply")
    t.check("exit code when containerd's own reader refuses the file", said, exits(1))
    t.check("what it says", said.out, has("containerd", "config dump", "everything is back as it was"))
    t.check("files after it", changed(untouched, places(node)), [])
    node.write("/etc/containerd/config.toml", config)

    said = node.larder("apply")
    t.check("exit code when containerd does not come back", said, exits(1))
    t.check("what it says", said.out, has("containerd", "everything is back as it was"))
    t.check("files after it", changed(before, places(node)), [])
    t.check("containerd after it", node.wait("ctr plugins ls id==cri | grep -q ok", 30), exits(0))
    t.check("Debian's own registry after it", node.out("systemctl is-active docker-registry"), "active")
    t.check("registries after it", node.out("systemctl list-units --no-legend --plain 'larder-registry@*'"), "")
    back = node.wait(f"ip -4 -o addr show dev eth0 | grep -q '{address}'", 30)
    t.check("address after it", back, exits(0))

    node.sh("rm -r /etc/systemd/system/containerd.service.d && systemctl daemon-reload")
    t.check("exit code once containerd is well", node.larder("apply"), exits(0))


def places(node):
    """Larder's own state is its memory of the attempt."""
    files = node.snapshot("--content", "/etc", "/usr/lib/systemd")
    return {path: what for path, what in files.items() if not path.startswith("/etc/.pwd")}
