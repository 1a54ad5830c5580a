#!/usr/bin/env python3
"""Inside a machine: writes each of trees.py's trees, and says what `larder explain` and containerd made of it.

Trees come as JSON on standard input, results go as JSON to standard output. Recorders on loopback stand for
every mirror and registry: they answer 404, or a digest for repositories that begin with `found/`.
"""

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import grpc

PLAIN = (80, 18001, 18002, 18003, 18004)
TRUSTED, UNTRUSTED = (443, 18443), (18444,)
NAMES = ("r.test", "t.test", "u.test", "http.test", "docker.io", "registry-1.docker.io")
DIGEST = "sha256:" + "0" * 64
KEEP = ("/etc/containerd", "/etc/docker")


def shell(command):
    return subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def certificate(folder, name):
    """A self-signed pair for all names."""
    names = ",".join([f"DNS:{one}" for one in NAMES] + ["IP:127.0.0.1", "IP:::1", "DNS:localhost"])
    pem, key = f"{folder}/{name}.pem", f"{folder}/{name}.key"
    done = shell(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        f" -addext subjectAltName={names} -keyout {key} -out {pem}"
    )
    if done.returncode:
        sys.exit(done.stdout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return pem, context


class Recorders:
    """What was asked, in order: [how, port, method, path, ns] or ["hello", port] where TLS got no further."""

    def __init__(self, contexts):
        self.events, self.lock = [], threading.Lock()
        for port in PLAIN + TRUSTED + UNTRUSTED:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen(64)
                threading.Thread(target=self.accept, args=(listener, port, contexts.get(port)), daemon=True).start()

    def accept(self, listener, port, context):
        while True:
            connection, _ = listener.accept()
            connection.settimeout(5)
            threading.Thread(target=self.serve, args=(connection, port, context), daemon=True).start()

    def take(self):
        with self.lock:
            events, self.events = self.events, []
        return events

    def record(self, *event):
        with self.lock:
            self.events.append(list(event))
            return self.events[-1]

    def serve(self, connection, port, context):
        try:
            with connection:
                first = connection.recv(1, socket.MSG_PEEK)
                if first == b"\x16" and context is None:
                    # As a Go server does.
                    self.record("hello", port)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent TLS\n")
                elif first == b"\x16":
                    # Whatever comes of it, it is asked now.
                    event = self.record("hello", port)
                    self.answer(context.wrap_socket(connection, server_side=True), "tls", port, event)
                elif first:
                    self.answer(connection, "http", port)
        except OSError:
            pass

    def answer(self, connection, how, port, event=None):
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return
            data += more
        method, target = data.split(b" ", 2)[:2]
        path, _, query = target.decode().partition("?")
        ns = re.search(r"(?:^|&)ns=([^&]*)", query)
        event = self.record() if event is None else event
        event[:] = [how, port, method.decode(), path, ns and ns.group(1).replace("%3A", ":")]
        head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if method == b"HEAD" and "/found/" in path:
            head = (
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\nDocker-Content-Digest: "
                f"{DIGEST}\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
            )
        connection.sendall(head.encode())


def load_cri():
    loader = importlib.machinery.SourceFileLoader("cri", "/usr/local/bin/cri")
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("cri", loader))
    loader.exec_module(module)
    return module


class Machine:
    def __init__(self, folder):
        self.cri = load_cri()
        trusted, good = certificate(folder, "trusted")
        self.untrusted, bad = certificate(folder, "untrusted")
        shutil.copy(trusted, "/usr/local/share/ca-certificates/trees.crt")
        shell("update-ca-certificates")
        with open("/etc/hosts", "a", encoding="utf-8") as file:
            file.write(f"127.0.0.1 {' '.join(NAMES)}\n")
        os.makedirs("/etc/systemd/system/containerd.service.d", exist_ok=True)
        with open("/etc/systemd/system/containerd.service.d/trees.conf", "w", encoding="utf-8") as file:
            file.write("[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=no\n")
        shell("systemctl daemon-reload")
        self.recorders = Recorders({**{port: good for port in TRUSTED}, **{port: bad for port in UNTRUSTED}})
        self.running = None

    def write(self, files):
        for folder in KEEP:
            shutil.rmtree(folder, ignore_errors=True)
        os.makedirs("/etc/containerd")
        for path, text in files.items():
            if text is None:
                os.makedirs(path)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if text == "@untrusted.pem":
                shutil.copy(self.untrusted, path)
            else:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)

    def restart(self, files):
        """Only when what containerd reads at its start is another."""
        config = {path: text for path, text in files.items() if "/certs.d" not in path}
        if config != self.running or not self.up():
            shell("systemctl restart containerd")
            self.running = config

    def up(self):
        return shell("systemctl is-active containerd").stdout.strip() == "active"

    def pull(self, image):
        """(gRPC code, details) of a pull."""
        deadline = time.monotonic() + 20
        while True:
            self.recorders.take()
            channel = grpc.insecure_channel(self.cri.SOCKET, options=[("grpc.default_authority", "localhost")])
            call = channel.unary_unary("/runtime.v1.ImageService/PullImage")
            try:
                call(self.cri.field(1, self.cri.field(1, image.encode())), timeout=30)
                return "OK", ""
            except grpc.RpcError as error:
                code, details = error.code().name, error.details() or ""
                early = "not initialized" in details or (code == "UNAVAILABLE" and "connect" in details)
                if not early or time.monotonic() > deadline or not self.up():
                    return code, details
                time.sleep(0.1)
            finally:
                channel.close()

    def trial(self, tree):
        self.write(tree["files"])
        self.restart(tree["files"])
        told = subprocess.run(
            ["larder", "explain", tree["host"], "--output", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False
        )
        result = {"name": tree["name"], "exit": told.returncode, "error": told.stderr}
        result["told"] = json.loads(told.stdout) if told.stdout else None
        if not self.up():
            result.update(state="fatal", log=shell("journalctl -u containerd -n 3 -o cat").stdout[-600:])
            return result
        code, details = self.pull(f"{tree['host']}/x/y:1")
        result.update(code=code, details=details, tags=self.recorders.take())
        if code == "UNIMPLEMENTED":
            result["state"] = "cri_down"
        else:
            if self.up():
                self.pull(f"{tree['host']}/found/y:1")
            events = self.recorders.take()
            heads = [index for index, event in enumerate(events) if event[2:3] == ["HEAD"]]
            result["blobs"] = events[heads[-1] + 1 :] if heads else []
            time.sleep(0.02)
            result["state"] = "up" if self.up() else "crashed"
        return result


def main():
    trees = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(folder)
        # Trees that share a configuration share a start.
        print(json.dumps([machine.trial(tree) for tree in trees]))
    os._exit(0)  # whatever a recorder still waits for


if __name__ == "__main__":
    main()
