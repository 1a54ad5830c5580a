"""Two machines: one caches, the other only pulls. Then the cache loses its power."""

from machine import profile
from report import at_least
from scenarios.common import applied_at_boot, by_containerd, has_its_address, pulled, push, reference


def run(t):
    lab = t.lab()
    push(lab, "1", "2")
    cache, client = lab.machine("cache"), lab.machine("client")
    cache.apply_at_boot(profile(containerd=False))
    client.apply_at_boot(
        profile(address="10.0.20.11", cache=False, containerd="containerd: { caches: [10.0.20.10] }\n")
    )
    cache.boot()
    t.check("exit code on the cache", cache.out("cat /root/apply.code"), "0")
    client.boot()
    applied_at_boot(t, client)
    has_its_address(t, client, "on the client", "10.0.20.11")
    t.check("registries on the client", client.out("systemctl list-units --no-legend --plain 'larder-registry@*'"), "")
    t.check("containerd's configuration on the cache", cache.out("ls /etc/containerd/certs.d 2>/dev/null"), "")
    mark = lab.upstream.mark()
    t.check("pull on the client", client.pull(reference("quay.io")), pulled)
    asked = lab.upstream.requests(mark, "quay.io")
    t.check("blobs that the cache asked of the upstream", len({path for path, _ in asked}), at_least(3))
    t.check("blobs that the client asked of the upstream", by_containerd(asked), [])

    lab("kill", cache.name)
    mark = lab.upstream.mark()
    fallen = client.pull(reference("quay.io", "2"))
    t.check("pull on the client with the cache gone", fallen, pulled)
    t.check(
        "blobs that the client asked of the upstream then",
        len(by_containerd(lab.upstream.requests(mark, "quay.io"))),
        at_least(3),
    )
    t.note(f"pull with the cache gone: {fallen.seconds:.1f}s")
