"""The main job on every containerd there is: Debian 13's 1.7 and testing's 2.1, and newer ones on testing.

Debian 12 and its 1.6 have the scenario cache-and-client.
"""

from machine import profile
from report import has
from scenarios.common import (
    applied_at_boot,
    has_its_address,
    pulled,
    pulls_through_the_cache,
    push,
    reference,
    second_apply_changes_nothing,
    timers_differ,
    units_run,
)

SECONDS = 420  # one machine after the other


def run(t):
    # Debian 12's 1.6 is what most other scenarios run on.
    t.each_containerd(on, debians=("trixie", "forky"))


def on(t, lab, node, version):
    push(lab, "1")
    node.apply_at_boot(profile())
    node.boot()
    t.check("the containerd that runs", node.out("ctr version | sed '1,/Server/d'"), has(f"Version:  {version}."))
    t.note(node.out("systemctl --version | head -n1; cloud-init --version; uname -r"))
    applied_at_boot(t, node)
    has_its_address(t, node, "after the apply")
    units_run(t, node, "after the apply")
    timers_differ(t, node)
    pulls_through_the_cache(t, lab, node)
    second_apply_changes_nothing(t, node)
    lives = f"test -e /proc/{node.container()} && systemctl restart containerd && sleep 1 && ctr -n k8s.io task ls"
    t.check("a container, and a restart of containerd", node.out(lives), has("RUNNING"))
    node.remove_container()
    node.reboot()
    has_its_address(t, node, "after a reboot")
    units_run(t, node, "after a reboot")
    t.check("failed units after a reboot", node.out("systemctl --failed --no-legend --plain"), "")
    node.forget()
    mark = lab.upstream.mark()
    t.check("pull after a reboot", node.pull(reference("docker.io")), pulled)
    t.check("blobs it cost the upstream", lab.upstream.requests(mark, "docker.io"), [])
