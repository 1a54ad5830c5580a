"""Two caches share one bucket of a real S3 server: Debian's 2.8 and 3.x, one profile but for the engine."""

import os

from machine import CACHE, profile
from report import exits, has, lacks
from scenarios.common import applied_at_boot, by_containerd, pulled, push, reference, repository, second_apply_changes_nothing

SERVER = os.path.join(CACHE, "bin/s3s-fs")
REGISTRY3 = os.path.join(CACHE, "bin/registry")
UPSTREAMS = ("docker.io", "ghcr.io")
SECRET = 'b #c: "it\'s"'


def wanted(address, more=""):
    storage = (
        "cache:\n"
        f"{more}"
        "  storage:\n"
        "    s3:\n"
        "      bucket: caches\n"
        "      region: us-east-1\n"
        "      regionendpoint: http://10.0.20.1:9000\n"
        "      rootdirectory: /fleet\n"
        "      accesskey: { file: /etc/larder/secrets/s3-id }\n"
        "      secretkey: { file: /etc/larder/secrets/s3-key }\n"
    )
    return profile(address, upstreams=UPSTREAMS, cache=False, extra=storage)


def run(t):
    for needed in (SERVER, REGISTRY3):
        if not os.path.isfile(needed):
            t.skip("all of it", f"no {needed}: `make deps` could not build it, so NOTHING RAN on an object store")
            return
    lab = t.lab()
    push(lab, "1", upstreams=UPSTREAMS)
    bucket = os.path.join(lab.directory, "s3/caches")
    os.makedirs(bucket)
    server = lab.upstream.daemon(
        "gw", SERVER, "--host", "10.0.20.1", "--port", "9000", "--access-key", "larder", "--secret-key", SECRET,
        os.path.dirname(bucket),
    )  # fmt: skip
    try:
        two_caches(t, lab, bucket)
    finally:
        server.terminate()


def two_caches(t, lab, bucket):
    old = machine(lab, "old", wanted("10.0.20.10", "  gc: weekly\n"))
    new = machine(lab, "new", wanted("10.0.20.11", "  engine: { binary: /usr/local/bin/registry }\n"))
    new.put("/usr/local/bin/registry", source=REGISTRY3, mode=0o755)
    for node in (old, new):
        node.boot()
        applied_at_boot(t, node)
        second_apply_changes_nothing(t, node)
    t.check("engines", [n.out("ps -eo comm | grep -m1 registry") for n in (old, new)], ["docker-registry", "registry"])
    t.check("the configuration, which everybody may read", old.out("cat /etc/larder/registry/*.yml"), lacks("secretkey", "it's"))
    t.check("modes of the secrets", old.out("stat -c %a /etc/larder/registry/ghcr.io.env"), "600")
    timers = [n.out("systemctl list-timers --all --no-legend 'larder-gc@*' | wc -l") for n in (old, new)]
    t.check("timers of collections: one node collects", timers, [str(len(UPSTREAMS)), "0"])
    t.check("collection of an empty store", old.sh("systemctl start larder-gc@ghcr.io"), exits(0))

    mark = lab.upstream.mark()
    t.check("pull through one", old.pull(reference("ghcr.io")), pulled)
    asked = lab.upstream.requests(mark, "ghcr.io")
    t.check("blobs that containerd asked of the upstream itself", by_containerd(asked), [])
    blobs = f"{bucket}/fleet/ghcr.io/docker/registry/v2/blobs/sha256"
    stored = old.lab("gw", "sh", "-c", f"for i in 1 2 3 4 5 6; do ls {blobs}/* | grep -c ... && exit; sleep 1; done").strip()
    t.check("its own data on the disk", old.out("ls /var/lib/larder"), lacks("ghcr.io"))
    t.note(f"blobs in the bucket: {stored.splitlines()[-1:]}")
    lab.upstream.stop()
    t.check("pull through the other, without the upstream", new.pull(reference("ghcr.io")), pulled)
    lab.upstream.start()

    # What a lifecycle rule of the bucket does: a blob is away, whoever has it in his lists.
    lab("gw", "sh", "-c", f"rm -r {blobs}/*")
    for node, name in ((old, "2.8"), (new, "3.x")):
        node.forget()
        mark = lab.upstream.mark()
        t.check(f"pull by {name} after the store has deleted every blob", node.pull(reference("ghcr.io")), pulled)
        asked = lab.upstream.requests(mark, "ghcr.io")
        t.check(f"blobs that containerd asked of the upstream itself ({name})", by_containerd(asked), [])
    t.check("collection of a full store", old.sh("systemctl start larder-gc@ghcr.io"), exits(0))
    t.check("collection by hand", old.larder("gc", "docker.io"), exits(0))
    t.check("collection by the other engine", new.larder("gc", "ghcr.io"), exits(0))
    lab.upstream.stop()
    new.forget()
    t.check("what is there after them", new.pull(reference("ghcr.io")), pulled)
    path = f"http://10.0.20.10:5010/v2/{repository('ghcr.io')}/manifests/1"
    status = "import sys, urllib.request as u; r = u.Request(sys.argv[1]);" \
        "r.add_header('Accept', 'application/vnd.oci.image.manifest.v1+json'); print(u.urlopen(r).status)"
    t.check("and through the other", old.out(f'python3 -c "{status}" {path}'), has("200"))


def machine(lab, name, text):
    node = lab.machine(name)
    node.put("/etc/larder/secrets/s3-id", "larder\n", mode=0o600)
    node.put("/etc/larder/secrets/s3-key", SECRET + "\n", mode=0o600)
    node.apply_at_boot(text)
    return node
