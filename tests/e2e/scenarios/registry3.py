"""Distribution 3 instead of Debian's 2.8: another configuration, another collector, the same machine."""

import os

from machine import CACHE, profile
from report import exits, has
from scenarios.common import (
    applied_at_boot,
    pulled,
    pulls_through_the_cache,
    push,
    reference,
    repository,
    second_apply_changes_nothing,
)

BINARY = os.path.join(CACHE, "bin/registry")
HEAD = (
    "import sys, urllib.request as u; r = u.Request(sys.argv[1], method='HEAD');"
    "r.add_header('Accept', 'application/vnd.oci.image.manifest.v1+json'); print(u.urlopen(r).status)"
)


def run(t):
    if not os.path.isfile(BINARY):
        t.skip("Distribution 3", f"no {BINARY}: `make deps` could not build it, so nothing here ran with version 3")
        return
    lab = t.lab()
    push(lab, "1")
    node = lab.machine("node")
    node.put("/usr/local/bin/registry", source=BINARY, mode=0o755)
    node.commands.append(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d;"
        "dpkg --purge docker-registry >/dev/null; rm /usr/sbin/policy-rc.d"
    )
    node.apply_at_boot(profile())
    node.boot()
    applied_at_boot(t, node)
    t.check(
        "the engine that runs", node.out("pgrep -a registry | head -1"), has("registry serve /etc/larder/registry/")
    )
    gc = "larder-gc@ghcr.io.service"
    t.check("garbage collection of an empty store", node.sh(f"systemctl start {gc}"), exits(0))
    # One HEAD of a manifest leaves a repository without layers: version 3's own collector stumbles on it.
    url = f"http://10.0.20.10:5010/v2/{repository('ghcr.io')}/manifests/1"
    t.check("HEAD of a manifest through the cache", node.sh(f'python3 -c "{HEAD}" {url}').out.strip(), "200")
    t.check("garbage collection with a repository of one manifest", node.sh(f"systemctl start {gc}"), exits(0))
    pulls_through_the_cache(t, lab, node)
    t.check("garbage collection of a full store", node.sh(f"systemctl start {gc}"), exits(0))
    pid = node.show("larder-registry@ghcr.io", "MainPID")["MainPID"]
    t.check("restart", node.sh("systemctl restart larder-registry@ghcr.io.service"), exits(0))
    again = node.wait(
        f"test $(systemctl show -P MainPID larder-registry@ghcr.io) != {pid} && "
        "systemctl is-active larder-registry@ghcr.io",
        30,
    )
    t.check("the registry after it", again, exits(0))
    # While systemd listens for it nobody answers; a round of `larder watch` may have seen that.
    back = node.wait("! grep -q 'Left out' /etc/containerd/certs.d/ghcr.io/hosts.toml", 60)
    t.check("its place in containerd's order", back, exits(0))
    node.forget()
    mark = lab.upstream.mark()
    t.check("pull after both", node.pull(reference("ghcr.io")), pulled)
    t.check("blobs it cost the upstream", lab.upstream.requests(mark, "ghcr.io"), [])
    second_apply_changes_nothing(t, node)
