"""Every mirror option, as the registries on the other side see it; on every containerd there is."""

import hashlib
import json
import os
import subprocess
import time

from machine import HERE
from report import at_least, exits, has, lacks
from scenarios.common import pulled, push, reference, repository, second_apply_changes_nothing
from upstream import NAMES

SECONDS = 420
GATEWAY, SECOND, SIXTH = "10.0.20.1", "10.0.20.2", "fd00:20::1"
BY_HAND = 'server = "https://quay.io"\n\n[host."http://by.hand.example:5000"]\n  capabilities = ["pull"]\n'
FOREIGN = 'server = "https://elsewhere.example.org"\n\n[host."http://10.0.20.1:8105"]\n'

UPSTREAMS = "version: 1\nupstreams:\n" + "".join(
    f"  {name}: {{ port: {5000 + 10 * index} }}\n" for index, name in enumerate(NAMES)
)


def authority(directory):
    """An authority that no machine trusts, a server's certificate of it and a client's."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    ours = ["-CA", "private-ca.pem", "-CAkey", "private-ca.key", "-addext", "basicConstraints=CA:FALSE"]
    for name, more in (
        ("private-ca", []),
        ("private", [*ours, "-addext", f"subjectAltName=IP:{GATEWAY}"]),
        ("client", [*ours, "-addext", "extendedKeyUsage=clientAuth"]),
    ):
        command = [*make, "-subj", f"/CN=Larder {name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", *more]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)


class Mirrors:
    """mirror.py on the gateway."""

    def __init__(self, lab):
        self.lab, self.directory = lab, lab.directory
        authority(lab.directory)
        lab("gw", "ip", "address", "add", f"{SECOND}/24", "dev", "br0")
        lab("gw", "ip", "address", "add", f"{SIXTH}/64", "dev", "br0", "nodad")
        here = lambda name: os.path.join(lab.directory, name)
        private = {"certificate": here("private.pem"), "key": here("private.key")}
        public = {"certificate": here("upstream.crt"), "key": here("upstream.key")}
        self.config, self.log = here("mirrors.json"), here("mirrors.log")
        listeners = [
            {"name": "ca", "listen": f"{GATEWAY}:8101", **private},
            {"name": "client", "listen": f"{GATEWAY}:8102", **private, "client_ca": here("private-ca.pem")},
            {"name": "header", "listen": f"{GATEWAY}:8103", **private, "header": ["X-Token", 'a "quoted" one']},
            {"name": "harbor", "listen": f"{GATEWAY}:8104", **private, "prefix": "/v2/proxy"},
            {"name": "default", "listen": f"{GATEWAY}:8105"},
            {"name": "basic", "listen": f"{GATEWAY}:8106", **public, "basic": 'ci:p"w\\d'},
            {"name": "server", "listen": f"{GATEWAY}:8108", **public, "basic": 'ci:p"w\\d'},
            {"name": "skip", "listen": f"{GATEWAY}:8107", **private},
            {
                "name": "all",
                "listen": f"{GATEWAY}:8109",
                **private,
                "client_ca": here("private-ca.pem"),
                "header": ["X-Token", 'a "quoted" one'],
                "prefix": "/v2/proxy",
            },
            {"name": "sixth", "listen": f"[{SIXTH}]:5000"},
            {"name": "first", "listen": f"{GATEWAY}:5000"},
            {"name": "second", "listen": f"{SECOND}:5000"},
        ]
        with open(self.config, "w", encoding="utf-8") as file:
            json.dump(listeners, file)
        open(self.log, "w").close()
        self.process = lab.upstream.daemon("gw", "python3", os.path.join(HERE, "mirror.py"), self.config, self.log)
        deadline = time.monotonic() + 15
        while not os.path.exists(self.config + ".ready"):
            if time.monotonic() > deadline:
                raise TimeoutError("start the mirrors")
            time.sleep(0.05)

    def says(self, name, status):
        """From now on that status; None: what the registry says."""
        path = f"{self.config}.{name}"
        if status is None:
            os.unlink(path)
            return
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(status))

    def asked(self, since):
        with open(self.log, encoding="utf-8") as log:
            log.seek(since)
            return [json.loads(line) for line in log]

    def mark(self):
        return os.path.getsize(self.log)


def leaks(lab, since, upstream):
    """Every request that an upstream got under its own name."""
    return [
        entry.get("http.request.method", "") + " " + entry.get("http.request.uri", "")
        for entry in lab.upstream.entries(since, upstream)
    ]


def served(t, lab, mirrors, node, what, image, name, upstream=None, ns=None):
    """A pull is served by one mirror, whole, and by nobody else."""
    mark, theirs = mirrors.mark(), lab.upstream.mark()
    t.check(f"{what}: pull", node.pull(image), pulled)
    asked = mirrors.asked(mark)
    good = [one for one in asked if one["name"] == name and one["status"] == 200]
    t.check(f"{what}: blobs that it served", sum("/blobs/" in one["path"] for one in good), at_least(3))
    t.check(f"{what}: others that were asked", sorted({one["name"] for one in asked} - {name}), [])
    if upstream:
        t.check(f"{what}: requests to the upstream", leaks(lab, theirs, upstream), [])
    if ns:
        t.check(f"{what}: namespaces that it was told", sorted({one["ns"] for one in asked}), [ns])
    node.forget()


def every_mirror(t, lab, mirrors, node, pem):
    inline = "".join(f"          {line}\n" for line in pem.splitlines())
    node.write("/etc/larder/profile.yaml", f"""{UPSTREAMS}containerd:
  mirrors:
    docker.io: [{{ url: "https://{GATEWAY}:8101", ca: /etc/ssl/private-ca.pem }}]
    ghcr.io:
      - url: https://{GATEWAY}:8102
        client: [/etc/ssl/client.pem, /etc/ssl/private/client.key]
        ca: |
{inline}    quay.io:
      - url: https://{GATEWAY}:8103
        ca: /etc/ssl/private-ca.pem
        headers: {{ X-Token: {{ file: /etc/larder/secrets/token }} }}
        dial_timeout: 2s
    registry.k8s.io: [{{ url: "https://{GATEWAY}:8104/v2/proxy", override_path: true, ca: /etc/ssl/private-ca.pem }}]
    skip.example.org: [{{ url: "https://{GATEWAY}:8107", skip_verify: true }}]
    _default: ["http://{GATEWAY}:8105"]
  max_concurrent_downloads: 5
  image_pull_progress_timeout: 1m
""")
    applied = node.larder("apply")
    t.check("apply", applied, exits(0))
    t.check("the hand-written file of an upstream", applied.out, has("quay.io/hosts.toml is kept as"))
    t.check("the hand-written file of a stranger", node.sh("cat /etc/containerd/certs.d/elsewhere.example.org/hosts.toml").out, FOREIGN)
    t.check("mode of a file with a header", node.out("stat -c %a /etc/containerd/certs.d/quay.io/hosts.toml"), "600")
    check = lambda *arguments: served(t, lab, mirrors, node, *arguments)
    check("private CA", reference("docker.io"), "ca", "docker.io", "docker.io")
    check("inline PEM and client certificate", reference("ghcr.io"), "client", "ghcr.io", "ghcr.io")
    check("header", reference("quay.io"), "header", "quay.io", "quay.io")
    check("Harbor project", reference("registry.k8s.io"), "harbor", "registry.k8s.io", "registry.k8s.io")
    check("an upstream that is not named", reference("reg.kyverno.io"), "default", "reg.kyverno.io", "reg.kyverno.io")
    check("_default", f"any.example.org/{repository('ghcr.io')}:1", "default", None, "any.example.org")
    check("skip_verify", f"skip.example.org/{repository('ghcr.io')}:1", "skip", None, "skip.example.org")
    t.check("a push capability", node.out("grep -rl push /etc/containerd/certs.d"), "")


def settings_are_read(t, node, version):
    dump = node.out("containerd config dump")
    sections, section = {}, ""
    for line in map(str.strip, dump.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ").replace("'", '"')
        elif "=" in line:
            key, value = line.split("=", 1)
            sections.setdefault(section, {})[key.strip()] = value.strip().strip("'\"")
    images = 'plugins."io.containerd.cri.v1.images"' if version >= (2, 0) else 'plugins."io.containerd.grpc.v1.cri"'
    limit = 'plugins."io.containerd.transfer.v1.local"' if version >= (2, 1) else images
    t.check("download limit as containerd reads it", sections.get(limit, {}).get("max_concurrent_downloads"), "5")
    if version >= (1, 7):
        timeout = sections.get(images, {}).get("image_pull_progress_timeout")
        t.check("progress timeout as containerd reads it", timeout, lambda got: got in ("1m0s", "60s", "1m"))
    log = node.out("journalctl -b -u containerd --no-pager")
    t.check("containerd's log", log, lacks("Falling back to local image pull", "failed to decode"))


def nobody_else(t, lab, mirrors, node):
    node.write("/etc/larder/profile.yaml", f"""{UPSTREAMS}containerd:
  fallback: false
  mirrors:
    docker.io: [{{ url: "https://{GATEWAY}:8101", ca: /etc/ssl/private-ca.pem }}]
    ghcr.io: ["http://{GATEWAY}:8199"]
    quay.io:
      - url: https://{GATEWAY}:8109/v2/proxy
        override_path: true
        ca: /etc/ssl/private-ca.pem
        client: [/etc/ssl/client.pem, /etc/ssl/private/client.key]
        headers: {{ X-Token: {{ file: /etc/larder/secrets/token }} }}
    _default: ["http://{GATEWAY}:8105"]
""")
    t.check("apply without fallback", node.larder("apply"), exits(0))
    served(t, lab, mirrors, node, "without fallback", reference("docker.io"), "ca", "docker.io")
    for status in (404, 500, 503, 401, 429):
        mirrors.says("ca", status)
        mark = lab.upstream.mark()
        t.check(f"without fallback, {status}: pull", node.pull(reference("docker.io")), exits(1))
        t.check(f"without fallback, {status}: requests to the upstream", leaks(lab, mark, "docker.io"), [])
    mirrors.says("ca", None)
    mark = lab.upstream.mark()
    t.check("without fallback, refused: pull", node.pull(reference("ghcr.io")), exits(1))
    t.check("without fallback, refused: requests to the upstream", leaks(lab, mark, "ghcr.io"), [])
    # The mirror stands there twice, the second time as the server: with all that goes with it.
    mirrors.says("all", "500 once")
    served(t, lab, mirrors, node, "without fallback, at the second try", reference("quay.io"), "all", "quay.io")
    served(t, lab, mirrors, node, "without fallback, _default", reference("registry.k8s.io"), "default", "registry.k8s.io")
    mirrors.says("default", 404)
    mark = lab.upstream.mark()
    t.check("without fallback, _default, 404: pull", node.pull(reference("registry.k8s.io")), exits(1))
    t.check("without fallback, _default, 404: requests to the upstream", leaks(lab, mark, "registry.k8s.io"), [])
    mirrors.says("default", None)


def own_credentials(t, lab, mirrors, node):
    """For a registry that is nobody's mirror, one that is, and an upstream that its caches cannot reach."""
    upstreams = UPSTREAMS.replace("port: 5040", f'port: 5040, remote: "https://{GATEWAY}:8108"')
    node.write("/etc/larder/profile.yaml", f"""{upstreams}containerd:
  caches: [{GATEWAY}]
  mirrors:
    quay.io: ["https://{GATEWAY}:8106"]
  auth:
    {GATEWAY}:8106: {{ username: ci, password: {{ file: /etc/larder/secrets/basic }} }}
    reg.kyverno.io: {{ username: ci, password: {{ file: /etc/larder/secrets/basic }} }}
""")
    planned = node.larder("plan")
    t.check("auth: plan", planned, exits(10))
    t.check("auth: secrets in the plan", planned.out, lacks('p"w', "Y2k6"))
    t.check("auth: apply", node.larder("apply"), exits(0))
    holds = node.out("grep -lrE 'password|Authorization' /etc/containerd | xargs stat -c '%a %n'").splitlines()
    t.check("auth: modes of the files that hold it", sorted({line.split()[0] for line in holds}), ["600"])
    served(t, lab, mirrors, node, "auth", f"{GATEWAY}:8106/{repository('ghcr.io')}:1", "basic")
    served(t, lab, mirrors, node, "auth of a mirror", reference("quay.io"), "basic", "quay.io")
    served(t, lab, mirrors, node, "auth of an upstream", reference("reg.kyverno.io"), "server", "reg.kyverno.io")
    log = node.out("journalctl -b -u containerd --no-pager")
    t.check("auth: containerd's log", log, lacks("Falling back to local image pull", "failed to decode"))


def two_caches(t, lab, mirrors, node, machine_id):
    image = reference("docker.io")
    for order in ("listed", "spread"):
        node.write("/etc/larder/profile.yaml", f"{UPSTREAMS}containerd: {{ caches: [{GATEWAY}, {SECOND}], order: {order} }}\n")
        t.check(f"{order}: apply", node.larder("apply"), exits(0))
        urls = [f"http://{address}:5000" for address in (GATEWAY, SECOND)]
        if order == "spread":
            urls.sort(key=lambda url: hashlib.sha256(f"{machine_id}\ndocker.io\n{url}".encode()).digest())
        written = node.out("grep -o 'http://[^\"]*' /etc/containerd/certs.d/docker.io/hosts.toml").split()
        t.check(f"{order}: the order", written, urls)
        names = {f"http://{GATEWAY}:5000": "first", f"http://{SECOND}:5000": "second"}
        near, far = (names[url] for url in urls)
        served(t, lab, mirrors, node, f"{order}: the nearest", image, near, "docker.io")
        mirrors.says(near, 503)
        mark, theirs = mirrors.mark(), lab.upstream.mark()
        t.check(f"{order}: pull while it fails", node.pull(image), pulled)
        blobs = [one["name"] for one in mirrors.asked(mark) if one["status"] == 200 and "/blobs/" in one["path"]]
        t.check(f"{order}: who served it then", sorted(set(blobs)), [far])
        t.check(f"{order}: requests to the upstream", leaks(lab, theirs, "docker.io"), [])
        mirrors.says(near, None)
        node.forget()


def ipv6(t, lab, mirrors, node, version):
    node.sh("ip address add fd00:20::9/64 dev eth0 nodad")
    node.write("/etc/larder/profile.yaml", f'{UPSTREAMS}containerd: {{ caches: ["{SIXTH}"] }}\n')
    applied = node.larder("apply")
    if version < (2, 0):
        t.check("IPv6: apply", applied, exits(2))
        t.check("IPv6: what it says", applied.out, has(f"containerd {version[0]}.{version[1]}.", "cannot read an IPv6 address"))
        return
    t.check("IPv6: apply", applied, exits(0))
    served(t, lab, mirrors, node, "IPv6", reference("docker.io"), "sixth", "docker.io")


def drop_in(t, lab, mirrors, node):
    """Where the main file imports a folder, it stays as the package brought it."""
    node.write("/etc/larder/profile.yaml", "version: 1\n")
    t.check("apply of nothing", node.larder("apply"), exits(0))
    node.sh("sed -i '1i imports = [\"/etc/containerd/conf.d/*.toml\"]' /etc/containerd/config.toml")
    before = node.out("sha256sum /etc/containerd/config.toml")
    # One upstream: `larder watch` would take out the caches of others, which nobody serves here.
    one = "version: 1\nupstreams: { docker.io: { port: 5000 } }\n"
    node.write("/etc/larder/profile.yaml", f"{one}containerd: {{ caches: [{GATEWAY}], max_concurrent_downloads: 5, image_pull_progress_timeout: 1m }}\n")
    t.check("drop-in: apply", node.larder("apply"), exits(0))
    t.check("drop-in: the package's file", node.out("sha256sum /etc/containerd/config.toml"), before)
    t.check("drop-in: its version", node.out("cat /etc/containerd/conf.d/zz-larder.toml"), has("version = 2"))
    served(t, lab, mirrors, node, "drop-in", reference("docker.io"), "first", "docker.io")
    settings_are_read(t, node, (2, 1))
    second_apply_changes_nothing(t, node)
    node.write("/etc/larder/profile.yaml", "version: 1\n")
    t.check("drop-in: apply of nothing", node.larder("apply"), exits(0))
    t.check("drop-in: what is left", node.out("ls /etc/containerd/conf.d 2>/dev/null"), "")
    mark = lab.upstream.mark()
    t.check("drop-in: pull after it", node.pull(reference("docker.io")), pulled)
    t.check("drop-in: requests to the upstream after it", len(leaks(lab, mark, "docker.io")), at_least(3))


def on(t, lab, node, version):
    version = tuple(map(int, version.split(".")))
    push(lab, "1")
    mirrors = Mirrors(lab)
    read = lambda name: open(os.path.join(lab.directory, name), encoding="utf-8").read()
    for path, name in (
        ("/etc/ssl/private-ca.pem", "private-ca.pem"),
        ("/etc/ssl/client.pem", "client.pem"),
        ("/etc/ssl/private/client.key", "client.key"),
    ):
        node.put(path, source=os.path.join(lab.directory, name), mode=0o644 if name.endswith("pem") else 0o600)
    node.put("/etc/larder/secrets/token", 'a "quoted" one\n', mode=0o600)
    node.put("/etc/larder/secrets/basic", 'p"w\\d\n', mode=0o600)
    node.put("/etc/containerd/certs.d/quay.io/hosts.toml", BY_HAND)
    node.put("/etc/containerd/certs.d/elsewhere.example.org/hosts.toml", FOREIGN)
    node.boot()
    config = node.sh("cat /etc/containerd/config.toml").out
    every_mirror(t, lab, mirrors, node, read("private-ca.pem"))
    settings_are_read(t, node, version)
    second_apply_changes_nothing(t, node)
    nobody_else(t, lab, mirrors, node)
    own_credentials(t, lab, mirrors, node)
    two_caches(t, lab, mirrors, node, node.out("cat /etc/machine-id"))
    ipv6(t, lab, mirrors, node, version)
    node.write("/etc/larder/profile.yaml", "version: 1\n")
    t.check("apply of nothing", node.larder("apply"), exits(0))
    t.check("containerd's own file after it", node.sh("cat /etc/containerd/config.toml").out, config)
    t.check("the hand-written file after it", node.sh("cat /etc/containerd/certs.d/quay.io/hosts.toml").out, BY_HAND)
    left = node.out("cd /etc/containerd/certs.d && find . -type f | sort").split()
    t.check("files after it", left, ["./elsewhere.example.org/hosts.toml", "./quay.io/hosts.toml"])
    if version >= (2, 0):
        drop_in(t, lab, mirrors, node)


def run(t):
    t.each_containerd(on)
