"""Registries from an image, by podman and by docker: the same profile, the same endpoints, the same care."""

import os

import archive
from machine import CACHE, profile
from report import exits, has, lacks
from scenarios.common import (
    applied_at_boot,
    in_use,
    pulled,
    pulls_through_the_cache,
    push,
    reference,
    second_apply_changes_nothing,
)

BINARY = os.path.join(CACHE, "bin/registry")
UPSTREAMS = ("docker.io", "ghcr.io")
CACHES = ("http://10.0.20.10:5000", "http://10.0.20.10:5010")
ARCHIVE = "/srv/registry.tar"
# Both runtimes keep images as overlays, which cannot stand on the lab's own: the machines' business, not Larder's.
STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "/var/lib/containers/storage"\nrunroot = "/run/containers/storage"\n'
DAEMON = '{ "storage-driver": "vfs", "iptables": false, "ip6tables": false, "bridge": "none" }\n'


def cache(engine=""):
    return profile(upstreams=UPSTREAMS, cache=False, extra=f"cache: {{ {engine} }}\n")


def by(runtime, image=f"file:{ARCHIVE}"):
    return cache(f'engine: {{ container: {runtime}, image: "{image}" }}')


def run(t):
    if not os.path.isfile(BINARY):
        t.skip("all of it", f"no {BINARY}: `make deps` could not build it, so nothing here ran in a container")
        return
    for suite in ("trixie", "bookworm"):
        with t.part(f"podman of {suite}"):
            podman(t, suite)
    with t.part("docker of trixie"):
        docker(t)


def machine(t, suite, flavour):
    lab = t.lab(suite, flavour)
    push(lab, "1", upstreams=UPSTREAMS)
    image = os.path.join(lab.directory, "registry.tar")
    identity = archive.archive(BINARY, "registry:3", image)
    node = lab.machine("node")
    node.put(ARCHIVE, source=image)
    node.put("/etc/containers/storage.conf", STORAGE)
    node.put("/etc/docker/daemon.json", DAEMON)
    return lab, node, identity


def podman(t, suite):
    lab, node, identity = machine(t, suite, "podman")
    node.apply_at_boot(by("podman"))
    node.boot()
    t.note(node.out("podman --version"))
    # No registry can be reached by podman here: the archive is all there is.
    applied_at_boot(t, node)
    t.check("what apply did for the image", node.out("cat /root/apply.out"), has(f"podman has loaded {ARCHIVE}"))
    runs(t, node, identity)
    second_apply_changes_nothing(t, node)
    t.check("apply by larder.service, from its sandbox", node.sh("systemctl restart larder.service"), exits(0))
    pulls_through_the_cache(t, lab, node, UPSTREAMS)
    collects(t, node)
    group = node.out("cat /proc/$(pgrep -x registry | head -1)/cgroup")
    t.check("control group of the registry", group, has("/larder-registry@"))
    if suite == "trixie":
        restarts(t, node)
        stands_in(t, lab, node)
        goes_over_to_the_binary(t, lab, node)


def runs(t, node, identity):
    commands = node.out("ps -eo user:12,args | grep -v grep | grep 'registry serve'").splitlines()
    mine = [line for line in commands if line.split()[1] == "registry"]
    t.check("registries that run, by user", [line.split()[0] for line in mine], ["larder"] * len(UPSTREAMS))
    t.check("what they may do", node.out("grep -h CapEff /proc/$(pgrep -x registry | head -1)/status"), has("0000000000000000"))
    t.check("their image", node.out("systemctl cat larder-registry@ghcr.io"), has(identity))
    log = node.out("stat -c '%U %a' /var/lib/larder/ghcr.io/.larder/access.log")
    t.check("owner of the access log", log, "larder 640")


def collects(t, node):
    t.check("collection by the unit", node.sh("systemctl start larder-gc@ghcr.io"), exits(0))
    t.check("collection by hand", node.larder("gc", "docker.io"), exits(0))
    left = node.out("find /var/lib/larder/docker.io /var/lib/larder/ghcr.io -not -user larder")
    t.check("files of the stores that are somebody else's", left, "")


def restarts(t, node):
    unit = "larder-registry@ghcr.io"
    node.sh(f"kill -9 $(systemctl show -P MainPID {unit})")
    again = node.wait(f"systemctl is-active {unit}", 30)
    t.check("the registry after kill -9", again, exits(0))
    t.check("restart by its unit", node.sh("systemctl start larder-restart@ghcr.io.service"), exits(0))
    t.check("the registry after it", node.wait(f"sleep 3; systemctl is-active {unit}", 30), exits(0))
    in_use(t, node, *CACHES)
    node.forget()
    t.check("pull after both", node.pull(reference("ghcr.io")), pulled)


def stands_in(t, lab, node):
    lab.upstream.stop()
    t.check("restart without the upstream", node.sh("systemctl restart larder-registry@docker.io"), exits(0))
    in_use(t, node, *CACHES)
    node.forget()
    t.check("pull of what is cached, without the upstream", node.pull(reference("docker.io")), pulled)
    lab.upstream.start()
    back = node.wait("! pgrep -f '[u]nit stand-in' >/dev/null && systemctl is-active larder-registry@docker.io", 60)
    t.check("the registry once the upstream is back", back, exits(0))


def goes_over_to_the_binary(t, lab, node):
    """Debian's own 2.8 on the same stores, and nothing of podman's is left."""
    node.write("/etc/larder/profile.yaml", cache())
    t.check("apply with the binary", node.larder("apply"), exits(0))
    t.check("containers after it", node.out("podman ps --all --quiet"), "")
    t.check("the engine that runs", node.out("pgrep -a docker-registry | head -1"), has("docker-registry serve"))
    unit = node.out("systemctl cat larder-registry@ghcr.io")
    t.check("what is left of podman in its unit", unit, lacks("podman"))
    in_use(t, node, *CACHES)
    node.forget()
    mark = lab.upstream.mark()
    t.check("pull from the same store", node.pull(reference("ghcr.io")), pulled)
    t.check("blobs it cost the upstream", lab.upstream.requests(mark, "ghcr.io"), [])


def docker(t):
    lab, node, identity = machine(t, "trixie", "docker")
    node.boot()
    t.note(node.out("docker --version"))
    started = node.sh("systemctl start docker.service", timeout=60)
    if started.code != 0:
        why = node.out("journalctl -u docker --no-pager -o cat | grep -iE 'fail|error' | tail -n 2")
        t.skip("all of it", f"dockerd does not start in this lab, so NOTHING RAN with docker: {why}")
        return
    node.sh("systemctl enable docker.service")
    node.write("/etc/larder/profile.yaml", by("docker"))
    t.check("apply", node.larder("apply"), exits(0))
    runs(t, node, identity)
    second_apply_changes_nothing(t, node)
    pulls_through_the_cache(t, lab, node, UPSTREAMS)
    collects(t, node)
    restarts(t, node)
