"""`verify --pull` says who served what, from evidence: the cache, or with the cache gone the upstream."""

import json

from machine import profile
from report import exits, has, lacks
from scenarios.common import by_containerd, push, reference

SECONDS = 300

UPSTREAMS = ("docker.io", "quay.io")
CACHE = "http://10.0.20.10:5000"
PROBES = {"docker.io": "library/app:1", "quay.io": "app/quay-io:1"}


def run(t):
    for suite in ("bookworm", "trixie", "forky"):
        on(t, suite)


def on(t, suite):
    lab = t.lab(suite)
    push(lab, "1", upstreams=UPSTREAMS)
    node = lab.machine("node")
    text = profile(upstreams=UPSTREAMS, extra="verify: { timeout: 10s }\n")
    for name, image in PROBES.items():
        text = text.replace(f"  {name}: {{ port: ", f"  {name}: {{ probe: '{image}', port: ")
    node.apply_at_boot(text)
    node.boot()
    version = node.out("containerd --version | awk '{print $3}'")

    def check(what, got, wanted=True):
        t.check(f"{suite}, containerd {version}: {what}", got, wanted)

    check("apply", node.out("cat /root/apply.code"), "0")
    files = node.snapshot("--content", "/etc/containerd")

    def verify(*options):
        said = node.larder("verify", "--pull", "--output", "json")
        rows = {}
        try:
            rows = {row["subject"]: row for row in json.loads(said.out)["rows"] if row["check"] == "pull"}
        except ValueError:
            pass
        t.note(f"{suite}: verify --pull: {said.seconds:.1f}s")
        return said, rows

    mark = lab.upstream.mark()
    said, rows = verify()
    check("through the cache: exit code", said, exits(0))
    for name in UPSTREAMS:
        row = rows.get(name, {})
        check(f"through the cache: {name}", row.get("state"), "ok")
        port = CACHE if name == "docker.io" else "http://10.0.20.10:5020"
        wanted = has(f"pulled {PROBES[name]}", f"manifest from {port}", f"3 blobs from {port}")
        check(f"through the cache: {name}: what it says", row.get("got", str(said)), wanted)
        asked = lab.upstream.requests(mark, name)
        check(f"through the cache: {name}: blobs that containerd asked of the upstream", by_containerd(asked), [])
    check("images after it", node.out("ctr -n k8s.io images ls -q"), "")
    check("content after it", node.out("ctr -n k8s.io content ls -q"), "")
    check("files after it", node.snapshot("--content", "/etc/containerd") == files)

    # As a person sees it, and with the image on the node under its own name.
    node.pull(reference("docker.io"))
    said = node.larder("verify", "--pull")
    check("already here: exit code", said, exits(0))
    check("already here: what it says", said.out, has("ok docker.io: pulled library/app:1", "already on this node", CACHE))
    names = node.out("ctr -n k8s.io images ls -q")
    check("already here: the image is still there", names, has("docker.io/library/app:1"))
    check("already here: and nothing of the proof", names, lacks("larder-pull"))
    node.forget()

    node.sh("systemctl stop larder-registry@docker.io")
    mark = lab.upstream.mark()
    said, rows = verify()
    row = rows.get("docker.io", {})
    check("cache stopped: exit code", said, exits(4))
    check("cache stopped: docker.io", row.get("state"), "warned")
    wanted = has(
        "manifest from the upstream itself, https://registry-1.docker.io",
        "3 blobs from the upstream itself",
        f"{CACHE} did not serve it (connection refused)",
    )
    check("cache stopped: what it says", row.get("got", str(said)), wanted)
    asked = {path for path in by_containerd(lab.upstream.requests(mark, "docker.io"))}
    check("cache stopped: blobs that containerd asked of the upstream", len(asked), 3)
    check("cache stopped: quay.io", rows.get("quay.io", {}).get("state"), "ok")
    lab.upstream.stop()
    said, rows = verify()
    row = rows.get("docker.io", {})
    check("upstream gone too: docker.io", row.get("state"), "down")
    check("upstream gone too: what it says", row.get("got", str(said)), has("not pulled", "connection refused"))
    check("files after all", node.snapshot("--content", "/etc/containerd") == files)
