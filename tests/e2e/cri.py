#!/usr/bin/env python3
"""A client of containerd's CRI, as the kubelet is one: gRPC on containerd's socket, runtime.v1.

    cri pull IMAGE...        pull in turn; prints the image's reference, exit 1 at the first failure
    cri rmi IMAGE...         remove, content included
    cri churn FILE IMAGE...  pull and remove in turn until FILE exists; prints counts and failures as JSON

It runs inside a machine and needs Debian's python3-grpcio only; the few protobuf messages are written by hand.
"""

import json
import os
import sys
import time

import grpc

SOCKET = "unix:///run/containerd/containerd.sock"


def field(number, data):
    """A length-delimited protobuf field."""
    size, head = len(data), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + data


class Cri:
    def __init__(self):
        # containerd refuses the authority that gRPC makes of a socket's path.
        channel = grpc.insecure_channel(SOCKET, options=[("grpc.default_authority", "localhost")])
        self.call = lambda method, message, timeout: channel.unary_unary(f"/runtime.v1.ImageService/{method}")(
            message, timeout=timeout
        )

    def pull(self, image):
        reply = self.call("PullImage", field(1, field(1, image.encode())), 120)
        return reply[2:].decode(errors="replace")

    def remove(self, image):
        self.call("RemoveImage", field(1, field(1, image.encode())), 60)


def churn(cri, stop, images):
    pulls, failures, slowest = 0, [], 0.0
    while not os.path.exists(stop):
        for image in images:
            start = time.monotonic()
            try:
                cri.pull(image)
                pulls += 1
                cri.remove(image)
            except grpc.RpcError as error:
                failures.append(f"{image}: {error.details()}")
                time.sleep(0.2)  # as a kubelet does, which does not ask again at once either
            slowest = max(slowest, time.monotonic() - start)
            if os.path.exists(stop):
                break
    print(json.dumps({"pulls": pulls, "failures": failures, "slowest": round(slowest, 1)}))


def main():
    cri, (command, *images) = Cri(), sys.argv[1:]
    try:
        if command == "churn":
            churn(cri, images[0], images[1:])
        for image in images if command in ("pull", "rmi") else ():
            print(cri.pull(image) if command == "pull" else cri.remove(image) or image)
    except grpc.RpcError as error:
        sys.exit(f"{command} {image}: {error.details()}")


if __name__ == "__main__":
    main()
