"""`larder remove` on a live machine gives back what was there before, and a machine with half a run is undone."""

from machine import changed, profile
from report import exits, has, lacks
from scenarios.common import pulled, push, reference

UPSTREAM = "ghcr.io"
WANTED = profile(upstreams=(UPSTREAM, "docker.io"))
UNITS = "systemctl list-units --all --plain --no-legend 'larder*'; systemctl --failed --plain --no-legend"


def run(t):
    for suite in ("bookworm", "trixie"):
        with t.part(suite):
            lab = t.lab(suite)
            push(lab, "1", upstreams=(UPSTREAM,))
            node = lab.machine("node")
            node.boot()
            one(t, node)


def one(t, node):
    before, lease = places(node), carries(node)
    t.check("a lease before anything", lease, has("dynamic"))
    config = node.out("stat -c '%a %u %g %y %h' /etc/containerd/config.toml; sha256sum /etc/containerd/config.toml")
    node.write("/root/profile.yaml", WANTED)
    t.check("apply", node.larder("apply", "--profile", "/root/profile.yaml"), exits(0))
    t.check("pull through the cache", node.pull(reference(UPSTREAM)), pulled)
    t.check("remove --dry-run", node.larder("remove", "--dry-run"), exits(10))

    said = node.larder("remove")
    t.check("remove: exit code", said, exits(0))
    t.check("remove: it names the stores", said.out, has(f"stays: /var/lib/larder/{UPSTREAM}"))
    t.note(f"remove took {said.seconds:.1f}s\n{said.out}")
    gone(t, node, before, lease, "remove")
    t.check(
        "remove: containerd's configuration, its mode, owner, time and names",
        node.out("stat -c '%a %u %g %y %h' /etc/containerd/config.toml; sha256sum /etc/containerd/config.toml"),
        config,
    )
    t.check("remove: the user of the stores", node.out("id -un larder"), "larder")
    t.check("remove: what is cached", node.out(f"find /var/lib/larder/{UPSTREAM} -name data | wc -l"), lambda n: int(n) > 2)
    again = node.larder("remove")
    t.check("remove again", (again.code, again.out.strip()), (0, "nothing of larder's is here"))

    t.check("apply again", node.larder("apply", "--profile", "/root/profile.yaml"), exits(0))
    node.forget()
    mark = node.lab.upstream.mark()
    t.check("apply again: pull", node.pull(reference(UPSTREAM)), pulled)
    t.check("apply again: blobs that the upstream served", node.lab.upstream.requests(mark, UPSTREAM), [])
    node.forget()
    t.check("remove --purge", node.larder("remove", "--purge"), exits(0))
    gone(t, node, before, lease, "remove --purge")
    t.check("remove --purge: the user", node.out("getent passwd larder; getent group larder"), "")
    t.check("remove --purge: /var/lib/larder", node.out("ls -d /var/lib/larder 2>/dev/null"), "")
    half(t, node, before, lease)


def half(t, node, before, lease):
    """`larder apply` dies with its units in place, its profile goes, and the machine boots."""
    node.write("/etc/larder/profile.yaml", WANTED)
    done = node.sh("""
        larder apply >/dev/null 2>&1 & pid=$!
        until [ -L /etc/systemd/system/multi-user.target.wants/larder.service ]; do
            kill -0 $pid || exit 3
            sleep 0.005
        done
        kill -9 $pid; wait $pid; test -d /var/lib/larder/state/undo && rm -r /etc/larder/profile.yaml""")
    t.check("a run that dies", done, exits(0))
    node.reboot()
    told = node.wait("journalctl -b --no-pager -u larder.service | grep 'it is undone'", 60)
    t.check("a run that dies, without a profile at boot: what it says", told.out, has("everything is as it was before it"))
    t.note(node.out("journalctl -b --no-pager -o cat -u larder.service -u larder-network.service | tail -12"))
    # The folder is the operator's: he has put his profile there.
    node.sh("rmdir /etc/larder; systemctl reset-failed")
    # Its timers have run: systemd's own notes of that are for `larder remove`.
    stamped = {path: what for path, what in places(node).items() if path.startswith("/var/lib/systemd")}
    gone(t, node, before | stamped, lease, "a run that dies, without a profile at boot")
    t.check("a run that dies: remove takes away what is left", node.larder("remove", "--purge"), exits(0))
    t.check("a run that dies: /var/lib/larder", node.out("ls -d /var/lib/larder 2>/dev/null"), "")
    gone(t, node, before, lease, "a run that dies, after remove")


def gone(t, node, before, lease, what):
    t.check(f"{what}: files", changed(before, places(node)), [])
    t.check(f"{what}: units of larder's, and failed ones", node.out(UNITS), "")
    t.check(f"{what}: CRI", node.wait("ctr plugins ls id==cri | grep -q ok", 30), exits(0))
    t.check(f"{what}: Debian's own registry", node.wait("systemctl is-active docker-registry", 30).out.strip(), "active")
    came = node.wait("ip -4 -o addr show dev eth0 | grep -q dynamic", 30)
    t.check(f"{what}: a lease again", came, exits(0))
    t.check(f"{what}: no other address", carries(node), lacks("10.0.20.10/24"))
    t.check(f"{what}: default route", carries(node), has("via 10.0.20.1"))
    t.check(f"{what}: /run/larder", node.out("ls -d /run/larder 2>/dev/null"), "")
    assert lease


def places(node):
    """What there is, but for the user of the stores and the copies that account tools make."""
    files = node.snapshot("--content", "/etc", "/usr/lib/systemd", "/var/lib/systemd")
    accounts = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/.pwd")
    others = "/var/lib/systemd/"
    return {
        path: what
        for path, what in files.items()
        if not path.startswith(accounts) and (not path.startswith(others) or "larder" in path)
    }


def carries(node):
    return node.out("ip -4 -o addr show dev eth0; ip -4 route show default")
