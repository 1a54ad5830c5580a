"""Debian 13: containerd 1.7, systemd 257, cloud-init 25."""

from machine import profile
from scenarios.common import (
    applied_at_boot,
    has_its_address,
    pulls_through_the_cache,
    push,
    second_apply_changes_nothing,
    timers_differ,
    units_run,
)


def run(t):
    lab = t.lab("trixie")
    push(lab, "1")
    node = lab.machine("node")
    node.apply_at_boot(profile())
    node.boot()
    applied_at_boot(t, node)
    has_its_address(t, node, "after the apply")
    units_run(t, node, "after the apply")
    timers_differ(t, node)
    pulls_through_the_cache(t, lab, node)
    second_apply_changes_nothing(t, node)
    node.reboot()
    has_its_address(t, node, "after a reboot")
    units_run(t, node, "after a reboot")
