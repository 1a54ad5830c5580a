#!/usr/bin/env python3
"""Real container images, made from nothing and pushed to a registry.

    images.py CA HOST < list      one image per line of standard input: REPOSITORY TAG LAYERS BYTES

Layers are real gzipped tars with right diff_ids, so that containerd unpacks them. Content depends on the
repository and the tag alone: the same list pushed twice is the same digests.
"""

import gzip
import hashlib
import http.client
import io
import json
import random
import ssl
import sys
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(name, size):
    """A tar with one file of `size` bytes that do not compress, and its gzip."""
    content = random.Random(name).randbytes(size)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo(name.replace("/", "-").replace(":", "-"))
        entry.size = len(content)
        entry.mode = 0o644
        archive.addfile(entry, io.BytesIO(content))
    return tar.getvalue(), gzip.compress(tar.getvalue(), compresslevel=1, mtime=0)


def image(repository, tag, layers, size):
    """The manifest of an image and its blobs, by digest."""
    made = [layer(f"{repository}:{tag}/{n}", size) for n in range(layers)]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/true"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar, _ in made]},
        }
    ).encode()
    blobs = [config] + [packed for _, packed in made]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": LAYER, "digest": digest(b), "size": len(b)} for b in blobs[1:]],
        }
    ).encode()
    return manifest, blobs


class Registry:
    """Pushes over one connection."""

    def __init__(self, host, ca):
        self.connection = http.client.HTTPSConnection(host, timeout=60, context=ssl.create_default_context(cafile=ca))

    def ask(self, method, path, body=None, kind="application/octet-stream", wanted=201):
        self.connection.request(method, path, body=body, headers={"Content-Type": kind})
        reply = self.connection.getresponse()
        text = reply.read()
        if reply.status != wanted:
            raise OSError(f"{method} {path}: wanted {wanted}, got {reply.status} {text[:300]!r}")
        return reply

    def push(self, repository, tag, manifest, blobs):
        for blob in blobs:
            place = self.ask("POST", f"/v2/{repository}/blobs/uploads/", wanted=202).getheader("Location")
            place = place[place.index("/v2/") :]
            self.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest(blob)}", blob)
        self.ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, MANIFEST)


def main():
    registry = Registry(sys.argv[2], sys.argv[1])
    for line in sys.stdin:
        repository, tag, layers, size = line.split()
        manifest, blobs = image(repository, tag, int(layers), int(size))
        registry.push(repository, tag, manifest, blobs)


if __name__ == "__main__":
    main()
