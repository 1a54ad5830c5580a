"""A cache that is far too small for what is pulled through it stays below its budget, and nobody notices.

One machine, with Debian's 2.8 for one upstream and Distribution 3 for the other. Both are pulled from at once, as fast
as it goes, while the garbage is collected: everything is younger than ten minutes, the worst there is.
"""

import json
import os
import time

from machine import CACHE, profile
from report import at_least, at_most, exits, has
from scenarios.common import push, repository

BINARY = os.path.join(CACHE, "bin/registry")
HOSTS = ("docker.io", "ghcr.io")
PORT = {"docker.io": 5000, "ghcr.io": 5010}
MIB = 1 << 20
BUDGET = 600 * MIB
TAGS = [str(number) for number in range(24)]
LAYERS = (3, 12 * MIB)
# Every image, then the first again: `pull PORT/REPOSITORY TAG...`; prints how many had what their digests say.
PULL = """#!/usr/bin/env python3
import hashlib, json, sys, urllib.request
port, _, repository = sys.argv[1].partition("/")
TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
def get(path):
    request = urllib.request.Request(f"http://10.0.20.10:{port}/v2/{repository}/{path}", headers={"Accept": TYPES})
    hash, whole = hashlib.sha256(), b""
    with urllib.request.urlopen(request, timeout=60) as answer:
        while data := answer.read(1 << 20):
            hash.update(data)
            whole = data if not whole else whole
    return "sha256:" + hash.hexdigest(), whole
right = 0
for tag in sys.argv[2:]:
    try:
        manifest = json.loads(get(f"manifests/{tag}")[1])
        parts = [manifest["config"], *manifest["layers"]]
        right += all(get("blobs/" + part["digest"])[0] == part["digest"] for part in parts)
    except OSError as error:
        print(tag, error, file=sys.stderr)
print(right)
"""
# The largest size that the stores have at any of ten looks a second: `peak FILE FOLDER...`, until FILE is there.
PEAK = """#!/usr/bin/env python3
import os, sys, time
def size(folder):
    total = 0
    try:
        total += os.lstat(folder).st_blocks * 512
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += size(entry.path)
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        pass
    return total
peak, looks, series = 0, 0, []
while not os.path.exists(sys.argv[1]):
    began = time.monotonic()
    now = sum(map(size, sys.argv[2:]))
    peak, looks = max(peak, now), looks + 1
    series.append(now >> 20)
    time.sleep(max(0, began + 0.1 - time.monotonic()))
print(peak, looks)
print(*series[::5])
"""


def run(t):
    lab = t.lab()
    push(lab, *TAGS, upstreams=HOSTS, size=LAYERS)
    node = lab.machine("node")
    node.put("/usr/local/bin/pull", PULL, mode=0o755)
    node.put("/usr/local/bin/peak", PEAK, mode=0o755)
    if os.path.isfile(BINARY):
        node.put("/usr/local/lib/registry-3", source=BINARY, mode=0o755)
        for unit, command in (("registry", "unit run"), ("gc", "gc")):
            node.put(
                f"/etc/systemd/system/larder-{unit}@ghcr.io.service.d/90-three.conf",
                f"[Service]\nExecStart=\nExecStart=larder {command} --engine /usr/local/lib/registry-3 %i\n",
            )
    else:
        t.skip("Distribution 3", f"no {BINARY}: `make deps` could not build it, so both upstreams ran with 2.8")
    text = profile(upstreams=HOSTS, containerd=False).replace("cache: {}", "cache: { max_size: 600MiB }")
    text = text.replace("{ port: 5010 }", f"{{ port: {PORT['ghcr.io']} }}")
    node.put("/etc/larder/profile.yaml", text)
    node.boot()
    t.check("apply", node.larder("apply"), exits(0))
    costs(t, node)

    node.sh("nohup peak /tmp/end /var/lib/larder/docker.io /var/lib/larder/ghcr.io >/tmp/peak 2>&1 &")
    tags = " ".join([*TAGS, *TAGS[:4]])
    began = time.monotonic()
    pulls = "; ".join(f"pull {PORT[h]}/{repository(h)} {tags} >/tmp/pulled.{h} 2>&1 &" for h in HOSTS).replace("&;", "&")
    node.sh(f"({pulls} wait)")
    took = time.monotonic() - began
    for host in HOSTS:
        t.check(f"{host}: images that came whole", node.out(f"tail -n1 /tmp/pulled.{host}"), str(len(TAGS) + 4))
    for host in HOSTS:
        t.check(f"{host}: collection after it", node.sh(f"systemctl start larder-gc@{host}.service"), exits(0))
    node.sh("touch /tmp/end; sleep 1")
    peak, looks = map(int, node.out("head -n1 /tmp/peak").split())
    t.note("MiB, twice a second: " + node.out("tail -n1 /tmp/peak"))
    pulled = 2 * (len(TAGS) + 4) * LAYERS[0] * LAYERS[1]
    t.note(
        f"pulled {pulled // MIB} MiB in {took:.0f} s through {BUDGET // MIB} MiB: peak {100 * peak / BUDGET:.1f} % of the "
        f"budget at {looks} looks"
    )
    t.check("peak in hundredths of the budget", 100 * peak // BUDGET, at_most(105))
    t.check("looks at it", looks, at_least(5))
    said(t, node)
    t.check("failed units", node.out("systemctl --failed --no-legend --plain"), "")


def costs(t, node):
    """CPU of the rounds while nothing happens."""
    used = "systemctl show larder-tend.service -P CPUUsageNSec"
    time.sleep(3)
    first = int(node.out(used))
    time.sleep(10)
    each = (int(node.out(used)) - first) / 10 / 1e6
    t.note(f"larder-tend.service, idle: {each:.2f} ms of CPU a second")


def said(t, node):
    dry = node.larder("gc", "--all", "--dry-run", "--output", "json")
    t.check("larder gc --dry-run as root", dry, exits(0))
    report = json.loads(dry.out)
    t.check("what it says of the budget", report["max_size"], BUDGET)
    t.check("bytes that are there", report["bytes"], at_most(BUDGET))
    files = [json.loads(node.out(f"cat /var/lib/larder/{host}/.larder/size.json")) for host in HOSTS]
    t.check("images that went, for `larder status`", min(file["evicted"]["images"] for file in files), at_least(3))
    journal = node.out("journalctl -q -o cat -t larder")
    t.check("the journal", journal, has("evicted", "max_size is too small for what is pulled here at once"))
    owners = node.out("find /var/lib/larder/*/.larder ! -user larder | head")
    t.check("files of another user in the stores", owners, "")
