"""The main job: a plain Debian 12 becomes a cache and its own client, through cloud-init alone."""

import json
import re

from machine import changed, profile
from report import at_least, at_most, exits, has
from scenarios.common import (
    UPSTREAMS,
    applied_at_boot,
    by_containerd,
    example,
    has_its_address,
    pulled,
    pulls_through_the_cache,
    push,
    reference,
    second_apply_changes_nothing,
    timers_differ,
    units,
    units_run,
)


def run(t):
    lab = t.lab()
    push(lab, "1", "2")
    node = lab.machine("node")
    node.apply_at_boot(example())
    node.boot()
    t.check("address before the apply is DHCP's", node.out("cat /root/address.before"), has("dynamic"))
    applied_at_boot(t, node)
    has_its_address(t, node, "after the apply")
    units_run(t, node, "after the apply")
    t.check("Debian's own registry", node.out("systemctl is-enabled docker-registry"), "masked")
    collects_an_empty_store(t, node)
    pulls_through_the_cache(t, lab, node)
    heals_what_is_broken(t, node)
    falls_back(t, lab, node)
    timers_differ(t, node)
    is_sandboxed(t, node)
    units_are_well_formed(t, node)
    says_what_it_proved(t, node)
    loses_no_pull(t, lab, node)
    second_apply_changes_nothing(t, node)
    keeps_a_hand_edit(t, node)
    survives_a_reboot(t, node)
    survives_a_new_instance(t, node)
    follows_the_profile(t, lab, node)
    gives_back_debians_registry(t, node)


def collects_an_empty_store(t, node):
    t.check("garbage collection of an empty store", node.sh("systemctl start larder-gc@quay.io"), exits(0))
    t.check("the same by hand", node.larder("gc", "quay.io"), exits(0))
    t.check("what root left in the store", node.out("find /var/lib/larder/quay.io ! -user larder"), "")


def heals_what_is_broken(t, node):
    """A scrub in its sandbox finds a blob that the disk has changed; the next pull has it again."""
    store = "/var/lib/larder/docker.io"
    blob = node.out(f"ls -S $(find {store} -path '*/blobs/*' -name data) | head -1").strip()
    node.sh(f"printf broken | dd of={blob} conv=notrunc")
    t.check("scrub of a store with a broken blob", node.sh("systemctl start larder-scrub@docker.io"), exits(0))
    t.check("the broken blob after it", node.sh(f"test -e {blob}"), exits(1))
    said = node.out("journalctl --unit larder-scrub@docker.io --output cat")
    t.check("what the scrub says", said, has("has another digest, removed", "1 broken, 1 removed"))
    node.forget()
    t.check("pull of what was broken", node.pull(reference("docker.io")), pulled)
    t.check("the blob after it", node.sh(f"for i in $(seq 50); do test -e {blob} && exit; sleep 0.1; done; exit 1"), exits(0))
    t.check("scrub of all stores by hand", node.larder("scrub", "--rate", "none"), exits(0))
    image = reference("docker.io")
    t.check("refresh of a cached image", node.larder("refresh", image).out, has(f"dropped {image}"))
    t.check("refresh of what is not cached here", node.larder("refresh", "registry.invalid/x"), exits(2))
    t.check("what root left in the store", node.out(f"find {store} ! -user larder"), "")
    node.forget()
    t.check("pull of what was refreshed", node.pull(image), pulled)


def falls_back(t, lab, node):
    """A cache that is stopped costs no pull: containerd asks the upstream itself."""
    node.sh("systemctl stop larder-registry@ghcr.io")
    mark = lab.upstream.mark()
    t.check("pull while its cache is stopped", node.pull(reference("ghcr.io", "2")), pulled)
    t.check(
        "blobs then asked of the upstream by containerd",
        len(by_containerd(lab.upstream.requests(mark, "ghcr.io"))),
        at_least(3),
    )
    node.sh("systemctl start larder-registry@ghcr.io")


def is_sandboxed(t, node):
    said = node.out("systemd-analyze security --no-pager larder-registry@docker.io.service")
    level = re.search(r"exposure level for \S+: (\d+\.\d+)", said)
    t.check("systemd-analyze security of a registry", float(level[1]) if level else said[-300:], at_most(2.0))
    t.note(level[0] if level else "")


def units_are_well_formed(t, node):
    names = " ".join(f"larder-{unit}" for unit in (
        "registry@ghcr.io.service", "gc@ghcr.io.service", "gc@ghcr.io.timer", "scrub@ghcr.io.service", "scrub@ghcr.io.timer", "restart@ghcr.io.service", "watch.timer",
        "restart@ghcr.io.timer"))
    verified = node.sh(f"systemd-analyze verify --man=no larder.service {names}")
    t.check("systemd-analyze verify of all units: exit code", verified, exits(0))
    t.check("systemd-analyze verify of all units: what it says", verified.out.strip(), "")


def says_what_it_proved(t, node):
    """The same report as a table, as JSON, in the status file, in the journal and while it waits."""
    report = json.loads(node.out("larder verify --output json"))
    t.check("checks of the report", (report["down"], report["warned"], report["skipped"], len(report["rows"])), (0, 0, 0, 40))
    status = json.loads(node.out("cat /run/larder/status.json"))
    t.check("status file", status["rows"] and status["ok"], report["ok"])
    fields = node.out("journalctl -b -o json LARDER_CHECK=upstream LARDER_SUBJECT=ghcr.io | tail -n1")
    t.check("journal fields", json.loads(fields or "{}").get("LARDER_STATE"), "ok")
    terminal = node.out("script -qec 'larder verify' /dev/null")
    t.check("progress on a terminal", terminal, has("proving 40/40", "40 checks in"))
    bare = node.out("unshare -m sh -c 'mount -t tmpfs none /run/systemd/journal && larder verify 2>&1 >/dev/null'")
    t.check("standard error where there is no journal", bare, has("40 checks in"))


def loses_no_pull(t, lab, node):
    """Garbage collection, then a restart, each in the middle of pulls from a slow upstream."""
    tags = [f"load{n}" for n in range(12)]
    push(lab, *tags, upstreams=["quay.io"], size=(3, 1_500_000))
    images = [reference("quay.io", tag) for tag in tags]
    t.check("warm-up for the load", node.pull(*images), pulled)
    node.forget()
    lab.upstream.start_behind("slow", "3000000")
    for kind in ("gc", "restart"):
        pid = node.show("larder-registry@quay.io", "MainPID")["MainPID"]
        # Without its repositories the store is cold again, and every blob in it is garbage to collect.
        node.sh("rm -rf /run/stop /var/lib/larder/quay.io/docker/registry/v2/repositories/*")
        load = node.start("cri churn /run/stop " + " ".join(images))
        node.wait("test $(ctr -n k8s.io content ls -q | wc -l) -gt 0", 20)
        # The restart timer's own step would leave a registry alone that is small and well.
        verb = {"gc": "start larder-gc@quay.io.service", "restart": "--no-block restart larder-registry@quay.io.service"}[kind]
        t.check(f"{kind} under load", node.sh(f"systemctl {verb}"), exits(0))
        if kind == "restart":
            again = node.wait(
                f"test $(systemctl show -P MainPID larder-registry@quay.io) != {pid} && "
                "systemctl is-active larder-registry@quay.io",
                60,
            )
            t.check("the registry under load is a new process", again, exits(0))
        node.sh("sleep 4; touch /run/stop")
        said = load.communicate(timeout=120)[0]
        result = json.loads(said.strip().splitlines()[-1])
        t.check(f"pulls during {kind}", result["pulls"], at_least(3))
        t.check(f"pulls lost during {kind}", result["failures"], [])
        t.note(f"{kind} under load: {said.strip()}")
    lab.upstream.start()


def keeps_a_hand_edit(t, node):
    path = "/etc/containerd/certs.d/ghcr.io/hosts.toml"
    before = node.out(f"cat {path}")
    node.sh(f"echo '# by hand' >> {path}")
    plan = node.larder("plan")
    t.check("plan over a file edited by hand: exit code", plan, exits(10))
    t.check("plan over a file edited by hand: text", plan.out, has("ghcr.io/hosts.toml", "by hand"))
    t.check("apply over a file edited by hand", node.larder("apply"), exits(0))
    t.check("the file after it", node.out(f"cat {path}"), before)
    t.check("what was kept aside", node.out(f"cat /var/lib/larder/state/kept{path}*"), has("# by hand"))


def survives_a_reboot(t, node):
    files = node.ours()
    node.reboot()
    has_its_address(t, node, "after a reboot")
    units_run(t, node, "after a reboot")
    t.check(
        "larder.service after a reboot",
        node.show("larder.service", "ActiveState", "Result"),
        {"ActiveState": "active", "Result": "success"},
    )
    t.check("failed units after a reboot", node.out("systemctl --failed --no-legend --plain"), "")
    t.check("our files after a reboot", changed(files, node.ours()), [])
    t.check("verify after a reboot", node.larder("verify"), exits(0))


def survives_a_new_instance(t, node):
    """What a hypervisor does when its cloud-init settings change: all of cloud-init runs again."""
    node.stop()
    node.apply_at_boot(example())
    node.seed(node.files["/var/lib/cloud/seed/nocloud/user-data"][0], instance="i-new")
    node.boot()
    t.check("cloud-init's instance", node.out("cat /var/lib/cloud/data/instance-id"), "i-new")
    has_its_address(t, node, "as a new instance")
    applied_at_boot(t, node)
    t.check("plan as a new instance", node.larder("plan"), exits(0))


def follows_the_profile(t, lab, node):
    """Another port, then two upstreams less: only what that concerns changes."""
    before = units(node)
    node.write("/etc/larder/profile.yaml", profile().replace("quay.io: { port: 5020 }", "quay.io: { port: 5021 }"))
    plan = node.larder("plan")
    t.check("plan of another port: exit code", plan, exits(10))
    t.check("plan of another port: text", plan.out, has("5021", "5020", "hosts.toml"))
    t.check("apply of another port", node.larder("apply"), exits(0))
    touched = [
        line.split()[1]
        for line in changed(before, units(node))
        if line.split()[1].startswith(("larder-registry@", "containerd"))
    ]
    t.check("services that another port touched", touched, ["larder-registry@quay.io.service"])
    mark = lab.upstream.mark()
    t.check("pull through the other port", node.pull(reference("quay.io", "2")), pulled)
    t.check("blobs then asked of the upstream by containerd", by_containerd(lab.upstream.requests(mark, "quay.io")), [])

    left = tuple(u for u in UPSTREAMS if u != "reg.kyverno.io")
    node.write("/etc/larder/profile.yaml", profile(upstreams=left))
    t.check("apply without reg.kyverno.io", node.larder("apply"), exits(0))
    t.check("what is left of it in /etc", node.out("find /etc -path '*reg.kyverno.io*'"), "")
    t.check("its units", node.out("systemctl list-units --no-legend --plain '*@reg.kyverno.io*'"), "")
    t.check("its port", node.out("ss -Hltn sport = :5040"), "")
    t.check("its data", node.sh("test -d /var/lib/larder/reg.kyverno.io/docker"), exits(0))
    units_run(t, node, "without reg.kyverno.io", left)

    left = tuple(u for u in left if u != "quay.io")
    node.write("/etc/larder/profile.yaml", profile(upstreams=left))
    t.check("apply --purge without quay.io", node.larder("apply", "--purge"), exits(0))
    t.check(
        "data of the upstreams that left",
        node.out("ls -d /var/lib/larder/quay.io /var/lib/larder/reg.kyverno.io 2>/dev/null"),
        "",
    )
    t.check("data of those that stayed", node.sh("test -d /var/lib/larder/docker.io/docker"), exits(0))


def gives_back_debians_registry(t, node):
    node.write("/etc/larder/profile.yaml", profile(cache=False, containerd="containerd: { caches: [10.0.20.1] }\n"))
    node.larder("apply")
    t.check("Debian's own registry when this is no cache", node.out("systemctl is-enabled docker-registry"), "enabled")
    t.check(
        "registries when this is no cache", node.out("systemctl list-units --no-legend --plain 'larder-registry@*'"), ""
    )
