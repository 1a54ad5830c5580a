"""What the other scenarios stand on: caches that misbehave on demand, and a network that loses packets."""

from report import at_least, exits, has
from scenarios.common import by_containerd, pulled, push, reference

# One request, how it ended, and after how long.
ASK = """
import socket, sys, time, urllib.request as u
start = time.monotonic()
try:
    with u.urlopen(u.Request(sys.argv[1], headers=dict(h.split("=", 1) for h in sys.argv[3:])), timeout=float(sys.argv[2])) as reply:
        end = f"{reply.status} {len(reply.read())}"
except OSError as error:
    end = getattr(error, "reason", None) or error
print(f"{end} after {time.monotonic() - start:.0f}s")
"""
# Two requests over one connection, the second when a file appears.
KEEP = """
import http.client, os, time
connection = http.client.HTTPConnection("10.0.20.21:5000", timeout=5)
for name in ("/root/first", "/root/second"):
    connection.request("GET", "/v2/")
    connection.getresponse().read()
    open(name, "w").close()
    while not os.path.exists("/root/go"):
        time.sleep(0.1)
"""
CACHE = "http://10.0.20.21:5000"


def run(t):
    lab = t.lab()
    push(lab, "1", "2", upstreams=["docker.io"])
    node = lab.machine("node")
    node.boot()
    node.write("/root/ask.py", ASK)

    def ask(path="/v2/", seconds=2, base=CACHE):
        return node.out(f"python3 /root/ask.py '{base}{path}' {seconds}")

    gateway = lab.fake()
    cache = gateway.door("10.0.20.21:5000", "https://10.0.20.1")
    t.check("a cache that passes requests on", ask(), has("200 2"))
    for behaviour, ends in (
        (("status", 429), "Too Many Requests after 0s"),
        (("refuse",), "refused] after 0s"),
        (("hang",), "timed out after 2s"),
        (("mute",), "timed out after 2s"),
    ):
        cache.set(*behaviour)
        what = " ".join(map(str, behaviour))
        t.check(f"a cache told to {what}", ask(), has(ends.split("]")[0]))
    cache.set("flap", 2)
    t.check("a flapping cache at first", ask(), has("200"))
    refused = node.wait(f"python3 /root/ask.py {CACHE}/v2/ 2 | grep -q refused", 10)
    t.check("then", refused, exits(0))
    t.check("and again", node.wait(f"python3 /root/ask.py {CACHE}/v2/ 2 | grep -q 200", 10), exits(0))

    cache.set("pass")
    node.write("/root/keep.py", KEEP)
    kept = node.start("python3 /root/keep.py")
    node.wait("test -e /root/first", 10)
    lab.blackhole(cache.address)
    node.sh("touch /root/go")
    t.check("a connection that was open before a black hole", kept.communicate(timeout=30)[0], has("timed out"))
    t.check("a cache behind a black hole", ask(seconds=5), has("timed out after 5s"))
    lab.restore(cache.address)
    t.check("after it", ask(), has("200"))
    node.blackhole(cache.address)
    t.check("a cache that this machine has lost", ask(seconds=5), has("timed out after 5s"))
    node.restore(cache.address)
    t.check("after it", ask(), has("200"))

    certificate, key, authority = lab.certificate("cache", "10.0.20.22", authority="other")
    private = gateway.door("10.0.20.22:5443", tls=(certificate, key), basic="mirror:secret")
    stranger = ask(base="https://10.0.20.22:5443")
    t.check("a cache with a certificate of nobody's authority", stranger, has("CERTIFICATE_VERIFY_FAILED"))
    with open(authority, encoding="utf-8") as file:
        node.write("/root/other.crt", file.read())
    known = "SSL_CERT_FILE=/root/other.crt python3 /root/ask.py https://10.0.20.22:5443/v2/ 2"
    t.check("with that authority, without credentials", node.out(known), has("Unauthorized"))
    t.check("with both", node.out(f"{known} 'Authorization=Basic bWlycm9yOnNlY3JldA=='"), has("200"))
    t.check("what its log says", [r.status for r in gateway.requests(door=private)], [401, 200])

    recorder = node.fake()
    first, second = recorder.record(2)
    node.write(
        "/etc/containerd/config.toml",
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n',
    )
    hosts = "".join(
        f'[host."http://{door}"]\n  capabilities = ["pull", "resolve"]\n' for door in (second.name, first.name, "10.0.20.21:5000")
    )
    node.write("/etc/containerd/certs.d/docker.io/hosts.toml", 'server = "https://registry-1.docker.io"\n' + hosts)
    node.sh("systemctl restart containerd")
    node.wait("ctr plugins ls id==cri | grep -q ok", 20)
    mark, above = gateway.mark(), lab.upstream.mark()
    t.check("pull through two that have nothing, and a cache", node.pull(reference("docker.io")), pulled)
    order = [r.door for r in recorder.requests(what="ns=docker.io")][:2]
    t.check("whom it asked, in order", order, [second.name, first.name])
    asked = gateway.requests(mark, cache, "/blobs/")
    t.check("blobs that the cache served", len(asked), at_least(3))
    t.check("who asked for them", by_containerd([(r.path, r.agent) for r in asked]), [r.path for r in asked])
    t.check("what the upstream was asked for", lab.upstream.requests(above, "docker.io"), [])

    cache.set("stall")
    stalled = node.start(f"timeout 8 cri pull {reference('docker.io', '2')}")
    t.check("a pull from a cache that stalls is not over after 8s", stalled.wait(30), 124)
    t.note(f"requests that the recorder saw: {len(recorder.requests())}")
