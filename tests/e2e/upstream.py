"""The world outside a machine: DHCP, DNS and the upstream registries, all on the gateway's side.

One real registry answers for every upstream's name over https, with a certificate of an authority that is
made per run and trusted by the machines. Its access log says which host was asked for what, and by whom.
"""

import json
import os
import signal
import subprocess
import time

ADDRESS = "10.0.20.1"
NAMES = {
    "docker.io": "registry-1.docker.io",
    "ghcr.io": "ghcr.io",
    "quay.io": "quay.io",
    "registry.k8s.io": "registry.k8s.io",
    "reg.kyverno.io": "reg.kyverno.io",
}
HERE = os.path.dirname(os.path.abspath(__file__))

CONFIG = """\
version: 0.1
log: {{ level: info, formatter: json, accesslog: {{ disabled: true }} }}
storage:
  filesystem: {{ rootdirectory: /mnt/upstream }}
  delete: {{ enabled: true }}
http:
  addr: {addr}
  secret: e2e
"""
TLS = "  tls: { certificate: /mnt/upstream.crt, key: /mnt/upstream.key }\n"


def certificates(directory):
    """An authority, and a certificate for all the upstreams' names."""
    names = ",".join([f"DNS:{name}" for name in NAMES.values()] + [f"IP:{ADDRESS}"])
    common = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-noenc",
        "-days",
        "2",
    ]
    for command in (
        [*common, "-subj", "/CN=Larder test authority", "-keyout", "ca.key", "-out", "ca.crt"],
        [
            *common,
            "-subj",
            "/CN=upstream",
            "-keyout",
            "upstream.key",
            "-out",
            "upstream.crt",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-addext",
            f"subjectAltName={names}",
            "-addext",
            "basicConstraints=CA:FALSE",
        ],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)


class Upstream:
    """Stands behind one gateway. `lab` runs commands there; `directory` is the lab's."""

    def __init__(self, lab, image, directory):
        self.lab, self.image, self.directory = lab, image, directory
        self.registry = self.names = self.front = None
        self.log_path = os.path.join(directory, "upstream.log")
        open(self.log_path, "w").close()
        certificates(directory)

    def daemon(self, *command):
        with open(os.path.join(self.directory, "gateway.log"), "ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.lab.command, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.lab.env,
            )

    def serve_names(self):
        """DHCP and DNS: every upstream's name is the gateway; any other does not exist."""
        addresses = [f"--address=/{name}/{ADDRESS}" for name in NAMES.values()]
        self.names = self.daemon(
            "gwroot",
            self.image,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--leasefile-ro",
            "--pid-file=",
            "--interface=br0",
            "--bind-interfaces",
            "--dhcp-range=10.0.20.100,10.0.20.150,2m",
            "--dhcp-authoritative",
            "--log-facility=-",
            *addresses,
        )

    def start(self):
        """The registry at https://10.0.20.1, as nothing but itself."""
        self._serve(f"{ADDRESS}:443", TLS)

    def start_behind(self, *behaviour):
        """The registry behind a front that misbehaves: see front.py for the words."""
        self._serve("127.0.0.1:5000", "")
        self.front = self.daemon(
            "gw",
            "python3",
            os.path.join(HERE, "front.py"),
            self.directory,
            f"{ADDRESS}:443",
            "127.0.0.1:5000",
            *behaviour,
        )
        self._listening(443)

    def _serve(self, addr, tls):
        self.stop()
        with open(os.path.join(self.directory, "upstream.yml"), "w") as config:
            config.write(CONFIG.format(addr=addr) + tls)
        with open(self.log_path, "ab") as log:
            self.registry = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    *self.lab.command,
                    "gwroot",
                    self.image,
                    "docker-registry",
                    "serve",
                    "/mnt/upstream.yml",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.lab.env,
            )
        self._listening(int(addr.rpartition(":")[2]))

    def _listening(self, port):
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if self.lab("gw", "ss", "-Hltn", f"sport = :{port}").strip():
                return
            time.sleep(0.05)
        raise TimeoutError(f"start upstream: nothing listens on port {port} (see {self.log_path})")

    def stop(self):
        """Connection refused, from now on."""
        for process in (self.registry, self.front):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.registry = self.front = None

    def close(self):
        self.stop()
        if self.names is not None:
            self.names.terminate()
            self.names.wait()

    def push(self, *images):
        """Each of `images` is (repository, tag, layers, bytes per layer)."""
        self.lab(
            "gw",
            "python3",
            os.path.join(HERE, "images.py"),
            os.path.join(self.directory, "ca.crt"),
            ADDRESS,
            stdin="".join(f"{r} {t} {n} {size}\n" for r, t, n, size in images),
        )

    def mark(self):
        """A place in the access log, for `requests`."""
        return os.path.getsize(self.log_path)

    def entries(self, since, upstream):
        """What the access log says of requests to `upstream` under its own name since a mark."""
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            log.seek(since)
            for line in log:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if entry.get("http.request.host") == NAMES[upstream]:
                    yield entry

    def requests(self, since, upstream, what="blobs"):
        """GETs of blobs (or manifests) of `upstream` since a mark: [(path, user agent)]."""
        return [
            (entry["http.request.uri"], entry.get("http.request.useragent", ""))
            for entry in self.entries(since, upstream)
            if entry.get("msg") == "response completed"
            and entry.get("http.request.method") == "GET"
            and f"/{what}/" in entry.get("http.request.uri", "")
        ]
