#!/usr/bin/env python3
"""Pulls that look like a fleet's, for a cache that is too small for them.

    workload.py LARDER [--registry PATH] [--pulls N] [--seed N] [--directory DIR]

runs one with real registries on loopback while `larder tend` evicts, `larder scrub` reads, the engine collects
and the cache is restarted, and prints what it saw next to what an exact LRU of the same size would have made of the same
trace. Exits 1 where a promise is broken.

The catalogue is ten times the budget. How often which image is pulled follows Zipf's law; sizes are log-normal; some
images share a base layer. Everything comes from the seed.
"""

import argparse
import bisect
import collections
import dataclasses
import hashlib
import http.client
import itertools
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
V2 = "docker/registry/v2"
BLOCK = 4096


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True)
class Image:
    name: str
    manifest: str
    # Configuration and layers: digest to size.
    blobs: tuple
    manifest_size: int


class Catalogue:
    """Images whose data is a function of the seed; no more of it is kept than the digests."""

    def __init__(self, seed, count, size, store):
        """`store`: the folder that an upstream registry serves them from; `size`: bytes of all of them."""
        self.store = store
        random_ = random.Random(f"catalogue {seed}")
        weights = [random_.lognormvariate(0, 0.8) for _ in range(count)]
        shared = 0.15
        scale = size / sum(weights)
        data = lambda size: (random_.randbytes(4096) * (int(size) // 4096 + 1))[: max(1, int(size))]
        bases = [data(size * shared / 20) for _ in range(4)]
        self.images = []
        for number, weight in enumerate(weights):
            layers = [data(weight * scale * (1 - shared))]
            if random_.random() < 0.3:
                layers.insert(0, random_.choice(bases))
            self.images.append(self._write(f"apps/image{number}", layers))

    def _put(self, path, data):
        path = f"{self.store}/{V2}/{path}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def _blob(self, data):
        digest = sha256(data)
        hexadecimal = digest[7:]
        self._put(f"blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data", data)
        return digest

    def _write(self, name, layers):
        config = json.dumps({"architecture": "amd64", "os": "linux", "name": name}).encode()
        described = []
        for media, data in [(CONFIG, config), *((LAYER, layer) for layer in layers)]:
            digest = self._blob(data)
            self._put(f"repositories/{name}/_layers/sha256/{digest[7:]}/link", digest.encode())
            described.append({"mediaType": media, "digest": digest, "size": len(data)})
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        data = json.dumps(manifest).encode()
        digest = self._blob(data)
        base = f"repositories/{name}/_manifests"
        self._put(f"{base}/revisions/sha256/{digest[7:]}/link", digest.encode())
        self._put(f"{base}/tags/v1/current/link", digest.encode())
        self._put(f"{base}/tags/v1/index/sha256/{digest[7:]}/link", digest.encode())
        return Image(name, digest, tuple((one["digest"], one["size"]) for one in described), len(data))

    def trace(self, seed, pulls, exponent=0.9):
        """Which image each pull is of. Zipf: the image of rank r is pulled as often as r to the -exponent."""
        random_ = random.Random(f"trace {seed}")
        ranks = list(self.images)
        random_.shuffle(ranks)
        sums = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(len(ranks))))
        return [ranks[bisect.bisect(sums, random_.random() * sums[-1])] for _ in range(pulls)]


def on_disk(size):
    return -(-size // BLOCK) * BLOCK


def lru(trace, capacity, per_image=0, per_blob=0):
    """What an exact LRU of whole images makes of a trace: how many of the pulls found all they needed.

    Blobs that images share are there once. `per_image` and `per_blob` are what a file system needs besides the data.
    """
    resident = collections.OrderedDict()
    holders = collections.Counter()
    used = hits = 0

    def costs(image):
        for digest, size in (*image.blobs, (image.manifest, image.manifest_size)):
            yield digest, on_disk(size) + per_blob

    for image in trace:
        if image in resident:
            hits += 1
            resident.move_to_end(image)
            continue
        resident[image] = True
        used += per_image
        for digest, cost in costs(image):
            used += cost if holders[digest] == 0 else 0
            holders[digest] += 1
        while used > capacity and len(resident) > 1:
            oldest, _ = resident.popitem(last=False)
            used -= per_image
            for digest, cost in costs(oldest):
                holders[digest] -= 1
                used -= cost if holders[digest] == 0 else 0
    return hits / len(trace)


class Client:
    """Pulls as containerd does: the cache first, its upstream where that fails; nothing counts unchecked."""

    def __init__(self, cache, upstream):
        self.endpoints = [cache, upstream]
        self.connections = {}

    def _ask(self, endpoint, method, path):
        """The body, or what went wrong. A kept connection that has ended meanwhile is opened again."""
        host, port = endpoint
        for fresh in (False, True):
            connection = None if fresh else self.connections.pop(endpoint, None)
            if connection is None:
                if not fresh:
                    continue
                connection = http.client.HTTPConnection(host, port, timeout=60)
            try:
                connection.request(method, path, headers={"Accept": MANIFEST})
                reply = connection.getresponse()
                body = reply.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if fresh:
                    return None, type(error).__name__
                continue
            self.connections[endpoint] = connection
            return (body, None) if reply.status == 200 else (None, str(reply.status))

    def _fetch(self, method, path, digest, report):
        for number, endpoint in enumerate(self.endpoints):
            body, error = self._ask(endpoint, method, path)
            if error is None and digest and sha256(body) != digest:
                error = "digest"
            if error is None:
                return
            report["failed at the cache" if number == 0 else "failed"][f"{method} {error}"] += 1

    def pull(self, image, report):
        base = f"/v2/{image.name}"
        self._fetch("HEAD", f"{base}/manifests/v1", None, report)
        self._fetch("GET", f"{base}/manifests/{image.manifest}", image.manifest, report)
        for digest, _ in image.blobs:
            self._fetch("GET", f"{base}/blobs/{digest}", digest, report)


def pull_all(trace, cache, upstream, is_here, rate, clients=4):
    """Pulls a trace with some clients at once, no more than `rate` images a second.

    `is_here(image)`: whether the cache has all of it already.
    """
    began = time.monotonic()
    report = {"pulls": len(trace), "hits": 0}
    report |= {key: collections.Counter() for key in ("failed at the cache", "failed")}
    work = queue.SimpleQueue()
    for number, image in enumerate(trace):
        work.put((began + number / rate, image))
    lock = threading.Lock()
    seen = set()

    def one():
        client = Client(cache, upstream)
        mine = {key: collections.Counter() for key in ("failed at the cache", "failed")}
        hits = 0
        while True:
            try:
                due, image = work.get_nowait()
            except queue.Empty:
                break
            with lock:
                seen.add(image)
            time.sleep(max(0, due - time.monotonic()))
            hits += is_here(image)
            client.pull(image, mine)
        with lock:
            report["hits"] += hits
            for key, counter in mine.items():
                report[key].update(counter)

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report["hit rate"] = report.pop("hits") / len(trace)
    report["images"] = len(seen)
    return report


def size_of(folder):
    """Bytes on disk, as du counts them; what goes meanwhile is not counted."""
    found = subprocess.run(["du", "-s", "--block-size=1", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return int(found.stdout.split()[0]) if found.stdout.strip() else 0


class Registry:
    """A real one on loopback; `remote` makes it a cache. Its access log is where `larder unit run` has it."""

    def __init__(self, program, store, port, remote=None):
        self.program, self.store, self.port = program, store, port
        os.makedirs(f"{store}/.larder/trash", exist_ok=True)
        for folder in ("repositories", "blobs"):
            os.makedirs(f"{store}/{V2}/{folder}", exist_ok=True)
        self.config = f"{store}.yml"
        proxy = f'proxy: {{ remoteurl: "http://127.0.0.1:{remote}" }}\n' if remote else ""
        with open(self.config, "w") as file:
            file.write(
                f"version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {store} }}\n"
                f'  delete: {{ enabled: true }}\nhttp: {{ addr: "127.0.0.1:{port}", draintimeout: 30s }}\n{proxy}'
            )
        self.process = None
        self.start()

    def start(self):
        environment = {"OTEL_TRACES_EXPORTER": "none"}
        with open(f"{self.store}/.larder/access.log", "ab") as log:
            command = [self.program, "serve", self.config]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self.program} does not listen on {self.port}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def collect(self):
        """As the GC unit does. Distribution 3 ends at a repository without layers, and at what goes meanwhile."""
        for folder, names, _ in os.walk(f"{self.store}/{V2}/repositories"):
            if "_manifests" in names:
                os.makedirs(f"{folder}/_layers", exist_ok=True)
            names[:] = [name for name in names if not name.startswith("_")]
        command = [self.program, "garbage-collect", self.config]
        return subprocess.run(command, capture_output=True, env={"OTEL_TRACES_EXPORTER": "none"}, check=False)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def caches_json(root, store, port, upstream, major, budget):
    """What `larder apply` leaves for everything that looks after a registry."""
    row = {"host": "registry.example", "address": f"127.0.0.1:{port}", "remote": f"http://127.0.0.1:{upstream}"}
    row |= {"major": major, "store": store, "max_size": None, "probe": None}
    os.makedirs(f"{root}/etc/larder")
    with open(f"{root}/etc/larder/caches.json", "w") as file:
        json.dump({"version": 1, "max_size": budget, "upstreams": [row]}, file)


class Disturbance(threading.Thread):
    """Everything that may go on beside the pulls, one after the other, again and again."""

    def __init__(self, larder, root, cache):
        super().__init__(daemon=True)
        self.larder, self.root, self.cache = larder, root, cache
        self.done, self.problems = threading.Event(), []
        self.counts = collections.Counter()

    def larder_run(self, *words):
        command = [self.larder, *words, "--root", self.root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.problems.append(f"{' '.join(words)}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def run(self):
        while not self.done.is_set():
            for what in (self.gc, self.scrub, self.restart):
                what()
                self.counts[what.__name__] += 1
                if self.done.wait(10):
                    break

    def gc(self):
        self.larder_run("gc", "--all")
        collected = self.cache.collect()
        if b"Path not found" in collected.stderr:
            # A repository came or went while it was being read; the next collection looks again.
            self.counts["gc that ended early"] += 1
        elif collected.returncode:
            self.problems.append(f"garbage-collect: {collected.stderr[-300:]!r}")

    def scrub(self):
        report = json.loads(self.larder_run("scrub", "--rate", "none", "--output", "json") or "{}")
        for store in report.get("stores", []):
            self.problems += [f"scrub: {broken}" for broken in store["broken"]]

    def restart(self):
        self.cache.stop()
        self.cache.start()


class Sizes(threading.Thread):
    """How large a folder is, as often as it can be asked."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.done, self.seen = folder, threading.Event(), []

    def run(self):
        while not self.done.wait(0.1):
            self.seen.append((time.monotonic(), size_of(self.folder)))


def run(larder, program, directory, seed, pulls, budget, images, rate):
    """The report of one run."""
    major = 3 if b" v3." in version(program) else 2
    catalogue = Catalogue(seed, images, budget * 10, f"{directory}/upstream")
    trace = catalogue.trace(seed, pulls)
    upstream = Registry(program, f"{directory}/upstream", free_port())
    root = f"{directory}/root"
    cache = Registry(program, f"{root}/store", free_port(), upstream.port)
    caches_json(root, "/store", cache.port, upstream.port, major, budget)
    store = f"{root}/store"

    def is_here(image):
        paths = (f"{store}/{V2}/blobs/sha256/{digest[7:9]}/{digest[7:]}/data" for digest, _ in image.blobs)
        return all(map(os.path.exists, paths))

    tend = subprocess.Popen([larder, "tend", "--rounds", "1000000", "--root", root])
    disturbance, sizes = Disturbance(larder, root, cache), Sizes(store)
    started = time.monotonic()
    try:
        disturbance.start()
        sizes.start()
        ends = ("127.0.0.1", cache.port), ("127.0.0.1", upstream.port)
        report = pull_all(trace, *ends, is_here, rate)
    finally:
        sizes.done.set()
        disturbance.done.set()
        sizes.join()
        disturbance.join()
        tend.kill()
        tend.wait()
    report["seconds"] = round(time.monotonic() - started)
    # Of what is there now: what the file system needs besides the data.
    overhead = folders_of(store)
    cache.stop()
    upstream.stop()
    held = mean_once_full(sizes.seen)
    report |= {
        "distribution": major,
        "seed": seed,
        "catalogue": sum(dict(blob for image in catalogue.images for blob in image.blobs).values()),
        "budget": budget,
        "peak": max(size for _, size in sizes.seen),
        "fill": [round(size / budget, 2) for _, size in sizes.seen[:: max(1, len(sizes.seen) // 40)]],
        "looks": len(sizes.seen),
        "disturbed by": dict(disturbance.counts),
        "problems": disturbance.problems,
        "mean fill": round(held / budget, 3),
        "lru of the budget": lru(trace, budget, *overhead),
        "lru of the mean fill": lru(trace, held, *overhead),
        "usage": read_json(f"{store}/.larder/usage.json"),
    }
    return report


def mean_once_full(seen):
    """Between its high and its low water, a cache holds less than its budget: an LRU of just so much is its equal."""
    full = max(size for _, size in seen) * 8 // 10
    sizes = list(itertools.dropwhile(lambda size: size < full, (size for _, size in seen)))
    return sum(sizes) // len(sizes)


def read_json(path):
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def version(program):
    """`docker-registry github.com/docker/distribution 2.8.2+ds1`, `registry github.com/distribution/… v3.1.1+unknown`"""
    return subprocess.run([program, "--version"], capture_output=True, check=False).stdout


def folders_of(store):
    """Bytes that an image and a blob need besides the data, as this file system counts: a folder and a link each."""
    folder = os.lstat(f"{store}/{V2}/repositories").st_blocks * 512
    link = BLOCK
    # The repository's eight folders with one tag, its index, and two links, a revision's folder and link.
    per_image = 14 * folder + 3 * link
    # The blob's folder, and a repository's folder and link for it.
    return per_image, 2 * folder + link


def broken_promises(report):
    """What of the report is not as it has to be."""
    broken = list(report["problems"])
    if report["failed"]:
        broken.append(f"pulls failed with the fallback on: {dict(report['failed'])}")
    if report["peak"] > report["budget"] * 1.05:
        broken.append(f"peak {report['peak'] / report['budget']:.3f} of the budget")
    if report["hit rate"] < report["lru of the mean fill"] - 0.05:
        broken.append(f"hit rate {report['hit rate']:.3f}, an LRU has {report['lru of the mean fill']:.3f}")
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larder")
    parser.add_argument("--registry", default=shutil.which("docker-registry"))
    parser.add_argument("--pulls", type=int, default=700)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--budget", type=int, default=256 << 20)
    parser.add_argument("--rate", type=float, default=8, help="pulls a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", help="where the stores are for so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        report = run(
            os.path.abspath(options.larder),
            options.registry,
            directory,
            options.seed,
            options.pulls,
            options.budget,
            options.images,
            options.rate,
        )
    print(json.dumps(report, indent=2))
    broken = broken_promises(report)
    for line in broken:
        print(f"BROKEN: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
