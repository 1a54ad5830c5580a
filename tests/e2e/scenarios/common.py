"""What more than one scenario does."""

import os

from machine import HERE, changed
from report import all_different, at_least, exits, has, lacks
from upstream import NAMES

UPSTREAMS = tuple(NAMES)
SMALL = (2, 100_000)


def repository(upstream):
    """A repository of its own for each upstream: no layer is shared between them."""
    return "library/app" if upstream == "docker.io" else "app/" + upstream.replace(".", "-")


def reference(upstream, tag="1"):
    return f"{upstream}/{repository(upstream)}:{tag}"


def push(lab, *tags, upstreams=UPSTREAMS, size=SMALL):
    lab.upstream.push(*[(repository(upstream), tag, *size) for upstream in upstreams for tag in tags])


def example():
    """The profile that the project ships."""
    path = os.path.join(HERE, "../../templates/profile.example.yaml")
    with open(path, encoding="utf-8") as file:
        return file.read()


def applied_at_boot(t, node, code="0"):
    """cloud-init ran `larder apply` and nothing is broken."""
    t.check("exit code of `larder apply` in runcmd", node.out("cat /root/apply.code"), code)
    t.check("cloud-init status", node.out("cloud-init status"), has("status: done"))
    t.check("failed units", node.out("systemctl --failed --no-legend --plain"), "")


def has_its_address(t, node, when, address="10.0.20.10"):
    found = node.out("ip -4 -o addr show dev eth0")
    t.check(f"static address {when}", found, has(f"{address}/24"))
    t.check(f"no DHCP address {when}", found, lacks("dynamic"))
    t.check(f"default route {when}", node.out("ip -4 route show default"), has("via 10.0.20.1"))


def no_cycles(t, node, when):
    """No job was thrown out of a boot, and none would be: for all that the boot pulls in, as it is enabled here."""
    t.check(f"ordering cycles at {when}", node.out("journalctl -b --no-pager | grep -i 'ordering cycle'"), "")
    said = node.out("systemd-analyze verify --man=no multi-user.target cloud-init.target 2>&1")
    found = [line for line in said.splitlines() if "cycle" in line or "larder" in line]
    t.check(f"systemd-analyze verify after {when}", found, [])


def units_run(t, node, when, upstreams=UPSTREAMS):
    names = [f"larder-registry@{u}.service" for u in upstreams]
    names += [f"larder-{kind}@{u}.timer" for u in upstreams for kind in ("gc", "restart")]
    states = dict(zip(names, node.out("systemctl is-active " + " ".join(names)).splitlines()))
    t.check(f"registries and timers active {when}", {n: s for n, s in states.items() if s != "active"}, {})


def pulls_through_the_cache(t, lab, node, upstreams=UPSTREAMS):
    """Each upstream through CRI: the first pull costs it blobs, asked for by the cache; the second none."""
    for upstream in upstreams:
        mark = lab.upstream.mark()
        t.check(f"{upstream}: first pull through CRI", node.pull(reference(upstream)), pulled)
        asked = lab.upstream.requests(mark, upstream)
        t.check(f"{upstream}: blobs it served on the first pull", len({path for path, _ in asked}), at_least(3))
        t.check(f"{upstream}: blobs that containerd asked of it itself", by_containerd(asked), [])
        node.forget()
        mark = lab.upstream.mark()
        t.check(f"{upstream}: second pull through CRI", node.pull(reference(upstream)), pulled)
        t.check(f"{upstream}: blobs it served on the second pull", lab.upstream.requests(mark, upstream), [])


def pulled(result):
    """exit 0 and a reference"""
    return result.code == 0 and "sha256:" in result.out


def by_containerd(requests):
    return [path for path, agent in requests if agent.startswith("containerd/")]


def timers_differ(t, node, upstreams=UPSTREAMS):
    for kind in ("gc", "scrub", "restart"):
        names = [f"larder-{kind}@{u}.timer" for u in upstreams]
        listed = node.out("systemctl list-timers --all --no-pager " + " ".join(names))
        t.check(f"{kind} timers listed", listed, has(*names))
        times = [node.show(name, "NextElapseUSecRealtime").get("NextElapseUSecRealtime") for name in names]
        t.check(f"next times of the {kind} timers", times, all_different)


def units(node):
    """What a restart, a reload or a crash of any unit of interest would change."""
    names = node.out(
        "systemctl list-units --all --plain --no-legend 'larder*' containerd.service docker-registry.service"
        " systemd-networkd.service | awk '{print $1}' | grep -vxE 'larder-(watch|tend|metrics).service'"  # they run by themselves
    ).split()
    return {
        name: node.show(name, "ActiveState", "ActiveEnterTimestampMonotonic", "NRestarts", "MainPID", "InvocationID")
        for name in names
    }


WATCHED = ("/etc", "/usr/lib", "/usr/local", "/var/lib/larder/state", "/run/systemd/system")


def second_apply_changes_nothing(t, node):
    files, running = node.snapshot(*WATCHED), units(node)
    again = node.larder("apply")
    t.check("exit code of a second apply", again, exits(0))
    t.check("files that the second apply wrote", changed(files, node.snapshot(*WATCHED)), [])
    t.check("units that the second apply touched", changed(running, units(node)), [])
    t.note(f"second apply: {again.seconds:.2f}s")
    t.check("plan after it", node.larder("plan"), exits(0))


def in_use(t, node, *caches):
    """`larder watch` may have seen a cache while it restarted: it is asked again some seconds later."""
    for cache in caches:
        back = node.wait(f"grep -rqF '[host.\"{cache}\"]' /etc/containerd/certs.d", 40)
        t.check(f"{cache} is in use", back, exits(0))
