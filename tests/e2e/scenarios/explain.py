"""`larder explain` agrees with what containerd then does, for every tree of trees.py on every containerd."""

import json
import os
import time
from urllib.parse import urlsplit

from machine import HERE
from report import exits, has
from trees import TREES

SECONDS = 600  # one machine after the other, each well below 90 s

PLAIN, TRUSTED, UNTRUSTED = (80, 18001, 18002, 18003, 18004), (443, 18443), (18444,)
REACHED = ("127.0.0.1", "localhost", "::1", "r.test", "t.test", "u.test", "http.test", "registry-1.docker.io")


def run(t):
    with open(os.path.join(HERE, "try_trees.py"), encoding="utf-8") as file:
        script = file.read()
    summary = []

    def on(t, _, node, version):
        node.boot()
        t.check("the containerd that runs", node.out("ctr version | sed '1,/Server/d'"), has(f"Version:  {version}."))
        node.write("/root/try_trees.py", script)
        started = time.monotonic()
        command = "python3 /root/try_trees.py 2>/root/try_trees.err || cat /root/try_trees.err"
        done = node.sh(command, stdin=json.dumps(TREES), timeout=300)
        t.check("all trees tried", done, exits(0))
        results = json.loads(done.out)
        wrong = {result["name"]: differs for result in results if (differs := difference(result))}
        for name, (wanted, got) in wrong.items():
            t.check(name, got, wanted)
        agree = len(results) - len(wrong)
        t.check("trees on which explain and containerd agree", agree, len(TREES))
        t.check("mirrors that nobody asks, and explain says no word", silent(results), [])
        summary.append(f"containerd {version}: {agree} of {len(TREES)} trees agree, {time.monotonic() - started:.0f}s")

    t.each_containerd(on)
    for line in summary:
        t.note(line)


def silent(results):
    """Trees whose mirrors are not asked, though explain finds nothing wrong."""
    written = {tree["name"]: any("://127.0.0.1:1800" in (text or "") for text in tree["files"].values()) for tree in TREES}
    return [
        result["name"]
        for result in results
        if written[result["name"]]
        and result["exit"] == 0
        and all(asked["role"] == "upstream" for asked in result["told"]["endpoints"])
    ]


def difference(result):
    """What explain said and what containerd did, where that is not the same."""
    told = result["told"]
    if told is None:
        return "an explanation", result["error"]
    wanted, got = said(told), did(result)
    # What differs between builds of one version is named as such.
    doubts = [note["text"] for note in told["traps"] + told["fatal"] if "some builds" in note["text"]]
    if doubts and (got["state"] == "crashed" or "TOML 1.1" in doubts[0]):
        return None
    # Exit 4 is the promise that a person is told of whatever stops a pull.
    if told["state"] != "up" and result["exit"] != 4:
        return "exit 4", f"exit {result['exit']}"
    return None if wanted == got else (wanted, got)


def said(told):
    crashes = told["fails"] and "crashes" in told["fails"]["text"]
    if told["state"] != "up":
        return {"state": "crashed" if crashes else told["state"]}
    tags = [event for asked in told["endpoints"] if asked["resolves"] for event in events(asked, "x/y/manifests/1")]
    if any("no fixed order" in trap["text"] for trap in told["traps"]):
        tags.sort()
    blobs = [
        [*event[:2], *event[3:]] if len(event) > 2 else event
        for asked in told["endpoints"]
        for event in events(asked, f"found/y/manifests/sha256:{'0' * 64}")
    ]
    found = any("HEAD" in event for event in tags)
    return {"state": "up", "tags": tags, "blobs": blobs if found else []}


def did(result):
    if result["state"] != "up":
        return {"state": result["state"]}
    if result["code"] not in ("NOT_FOUND", "OK") and not result["tags"]:
        return {"state": "pulls_fail"}
    blobs = [[*event[:2], *event[3:]] if len(event) > 2 else event for event in result["blobs"]]
    return {"state": "up", "tags": result["tags"], "blobs": blobs}


def events(asked, path):
    """What the recorders see when this endpoint is asked."""
    url = urlsplit(asked["url"])
    try:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
    except (KeyError, ValueError):
        return []
    if url.hostname not in REACHED:
        return []
    request = ["HEAD", f"{url.path}/{path}", asked["namespace"]]
    if url.scheme == "http":
        # A server of TLS that is asked in the clear has no answer for it.
        return [["http", port, *request]]
    if port in PLAIN:
        return [["hello", port], ["http", port, *request]] if asked["then_http"] else [["hello", port]]
    if port in UNTRUSTED and not asked["skip_verify"] and not asked["ca"]:
        return [["hello", port]]
    return [["tls", port, *request]]
