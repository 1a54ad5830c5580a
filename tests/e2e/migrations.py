#!/usr/bin/env python3
"""Older mirror configurations on the containerd of this machine, each migrated, with what it asks before and after.

Runs inside a machine. Listeners on loopback ports answer 404 and remember who was asked for what; a real
CRI pull of each case's images is the question. Prints one JSON object for each case, a line each.
"""

import base64
import http.server
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
import time

import grpc

CONFIG, DROP_IN = "/etc/containerd/config.toml", "/etc/containerd/conf.d/mirrors.toml"
CERTS, STATE = "/etc/containerd/certs.d", "/var/lib/larder"
PKI = "/etc/migrations"
IMAGES = ("docker.io/library/a:1", "quay.test/b:1", "other.test/c/d:1", "127.0.0.1:7001/e:1")
V1, V2, V3 = "cri", '"io.containerd.grpc.v1.cri"', '"io.containerd.cri.v1.images"'


# ---- who is asked
events = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        peer = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        name = dict(part[0] for part in peer["subject"])["commonName"] if peer else "-"
        given, port = self.headers.get("Authorization"), self.server.server_address[1]
        user = base64.b64decode(given.split()[1]).decode().split(":")[0] if given else "-"
        events.append(
            f"{port} {self.command} {self.headers['Host']}{self.path}"
            f" client={name} user={user} header={self.headers.get('X-Larder', '-')}"
        )
        refused = port == 7401 and not given
        self.send_response(401 if refused else 404)
        if refused:
            self.send_header("WWW-Authenticate", 'Basic realm="larder"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer

    def send_error(self, *_, **__):
        # As Go's server, and so every registry, answers who speaks TLS to it.
        self.close_connection = True
        self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")

    def log_message(self, *_):
        pass


class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port, tls=None):
        self.tls = tls
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, client_address):
        if self.tls:
            try:
                request.settimeout(10)
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # whoever does not trust us has not asked
        super().finish_request(request, client_address)

    def handle_error(self, *_):
        pass


def tls(name, clients=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{PKI}/{name}.crt", f"{PKI}/{name}.key")
    if clients:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def listen():
    for port in (7001, 7002, 7003, 7401):
        Listener(port)
    Listener(443, tls("public"))
    Listener(7443, tls("private", f"{PKI}/private-ca.crt"))
    Listener(7444, tls("private"))


# ---- containerd
def sh(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def cri_answers():
    with grpc.insecure_channel(
        "unix:///run/containerd/containerd.sock", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        try:
            channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=5)
            return True
        except grpc.RpcError:
            return False


def up(seconds=20):
    deadline = time.monotonic() + seconds
    while not cri_answers():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def restart(seconds=20):
    sh("systemctl", "reset-failed", "containerd")
    sh("systemctl", "restart", "containerd")
    return up(seconds)


loader = importlib.machinery.SourceFileLoader("cri", "/usr/local/bin/cri")
cri = importlib.util.module_from_spec(importlib.util.spec_from_loader("cri", loader))
loader.exec_module(cri)


def asked(images):
    """What pulls of these images ask, each question once: putting it again finds nothing new."""
    client, found = cri.Cri(), {}
    for image in images:
        events.clear()
        try:
            client.pull(image)
        except grpc.RpcError:
            pass  # there is nothing to be had
        found[image] = list(dict.fromkeys(events))
    return found


# ---- configurations
def mirrors(section, hosts):
    text = ""
    for host, endpoints in hosts.items():
        text += f'      [plugins.{section}.registry.mirrors."{host}"]\n        endpoint = {json.dumps(endpoints)}\n'
    return text


def tls_of(section, host, **keys):
    text = f'      [plugins.{section}.registry.configs."{host}".tls]\n'
    return text + "".join(f"        {key} = {json.dumps(value)}\n" for key, value in keys.items())


def auth(section, host):
    return (
        f'      [plugins.{section}.registry.configs."{host}".auth]\n'
        '        username = "bot"\n        password = "hunter2-xyzzy"\n'
    )


def kubeadm(section):
    runtime = '"io.containerd.cri.v1.runtime"' if section == V3 else section
    return (
        f"version = {3 if section == V3 else 2}\n# made for kubeadm\n[plugins]\n"
        f"  [plugins.{section}]\n"
        + ("" if section == V3 else '    sandbox_image = "registry.k8s.io/pause:3.9"\n')
        + f"    [plugins.{runtime}.containerd.runtimes.runc]\n"
        '      runtime_type = "io.containerd.runc.v2"\n'
        f"      [plugins.{runtime}.containerd.runtimes.runc.options]\n        SystemdCgroup = true # for the kubelet\n"
    )


class Case:
    """`text` and `drop_in` with `{}` where the older settings go.

    `beside`: this config_path stands beside them, and takes CRI down. `theirs` has hosts.toml files for the first
    folder of it, each with whom that asks: those stay.
    """

    def __init__(self, name, text, older, drop_in=None, images=IMAGES, again=False, beside=None, theirs=None):
        self.name, self.text, self.older, self.drop_in = name, text, older, drop_in
        # `again`: TLS settings that containerd 2 ignores hold again by the migration.
        self.images, self.again = images, again
        self.beside, self.theirs = beside, theirs or {}


def cases(debian, default, major):
    one = V2 if "version = 2" in default else V3
    # 2.2 and later: containerd's own choice of two folders, beside which no mirrors can be.
    default = re.sub(r"config_path = '/etc/containerd[^']*'", "config_path = ''", default)
    quay = {"quay.test": ["http://127.0.0.1:7001", "http://127.0.0.1:7002"]}
    docker = {"docker.io": ["http://127.0.0.1:7001"]}
    private = ("priv.test:7443/x:1", "quay.test/b:1", "docker.io/library/a:1")
    ca = f"{PKI}/private-ca.crt"
    client = {"cert_file": f"{PKI}/client.crt", "key_file": f"{PKI}/client.key"}
    yield Case("Debian's file", debian + "{}", mirrors(V2, docker | quay))
    yield Case("containerd config default", default + "{}", mirrors(one, docker | quay))
    yield Case("kubeadm's", kubeadm(V2) + "{}[debug]\n  level = \"info\"\n", mirrors(V2, docker | quay))
    yield Case("a wildcard", debian + "{}", mirrors(V2, {"*": ["http://127.0.0.1:7001", "http://127.0.0.1:7003/p"]}))
    yield Case(
        "an exact key before the wildcard",
        debian + "{}",
        mirrors(V2, {"*": ["http://127.0.0.1:7001"], "quay.test": [], "docker.io": ["http://127.0.0.1:7002"]}),
    )
    yield Case(
        "TLS: an authority",
        debian + "{}",
        mirrors(V2, {"quay.test": ["https://priv.test:7443"]}) + tls_of(V2, "priv.test:7443", ca_file=ca),
        images=private,
        again=True,
    )
    yield Case(
        "TLS: a client's certificate, and no verification",
        debian + "{}",
        mirrors(V2, {"quay.test": ["https://priv.test:7443/v2/p", "https://priv.test:7444"]})
        + tls_of(V2, "priv.test:7443", ca_file=ca, **client)
        + tls_of(V2, "priv.test:7444", insecure_skip_verify=True),
        images=private,
        again=True,
    )
    yield Case(
        "TLS: Docker's own registry",
        debian + "{}",
        mirrors(V2, docker) + tls_of(V2, "registry-1.docker.io", ca_file=ca, **client),
    )
    yield Case(
        "auth",
        debian + auth(V2, "127.0.0.1:7401") + "{}",
        mirrors(V2, {"quay.test": ["http://127.0.0.1:7401"], "docker.io": ["http://127.0.0.1:7002"]}),
    )
    yield Case(
        "auths and headers",
        debian
        + f'    [plugins.{V2}.registry.auths."http://127.0.0.1:7401"]\n      username = "bot"\n      password = "xyzzy"\n'
        + f'    [plugins.{V2}.registry.headers]\n      X-Larder = ["yes"]\n{{}}',
        mirrors(V2, {"quay.test": ["http://127.0.0.1:7401"]} | docker),
    )
    yield Case(
        "paths",
        debian + "{}",
        mirrors(
            V2,
            {
                "docker.io": ["http://127.0.0.1:7001/v2/proxy", "http://127.0.0.1:7002/harbor/"],
                "quay.test": ["http://127.0.0.1:7002/", "http://127.0.0.1:7001/v2/", "http://127.0.0.1:7003/a/v2"],
            },
        ),
    )
    if major == 1:
        # There a drop-in takes CRI's section whole.
        drop_in = f"version = 2\n# ours\n[plugins.{V2}]\n  sandbox_image = \"x/pause:1\"\n{{}}"
    else:
        drop_in = "version = 2\n# ours\n\n{}"
    yield Case("imports", 'imports = ["/etc/containerd/conf.d/*.toml"]\n' + debian, mirrors(V2, docker | quay), drop_in=drop_in)
    if major == 1:
        yield Case("version 1", f"version = 1\n[plugins.{V1}]\n  stats_collect_period = 11\n{{}}", mirrors(V1, docker | quay))
        yield Case("no version", f"# none\n[plugins.{V1}]\n  stats_collect_period = 11\n{{}}", mirrors(V1, docker | quay))
    else:
        yield Case("version 3", kubeadm(V3) + "{}", mirrors(V3, docker | quay | {"*": ["http://127.0.0.1:7003"]}))
    yield Case(
        "endpoints that are the host itself",
        debian + "{}",
        mirrors(
            V2,
            {
                "127.0.0.1:7001": ["http://127.0.0.1:7002", "http://127.0.0.1:7001"],
                "quay.test": ["https://quay.test"],
                "docker.io": ["https://registry-1.docker.io", "http://127.0.0.1:7003"],
                "other.test": ["http://other.test:7003", "https://other.test/v2", "http://127.0.0.1:7002"],
            },
        ),
    )
    yield Case(
        "several, without a scheme, one twice",
        debian + "{}",
        mirrors(
            V2,
            {"quay.test": ["127.0.0.1:7001", "localhost:7002", "mirror.test", "http://127.0.0.1:7001"]} | docker,
        ),
    )
    inline = f"    # in braces\n    [plugins.{V2}.registry]\n{{}}      config_path = \"\" # keep\n"
    registry = f'    [plugins.{V2}.registry]\n      config_path = ""\n'
    elsewhere = 'server = "https://other.test"\n[host."http://127.0.0.1:7003"]\n  capabilities = ["pull", "resolve"]\n'
    yield Case(
        "config_path beside mirrors",
        debian + registry + "{}",
        mirrors(V2, docker | quay | {"other.test": ["http://127.0.0.1:7002"]}),
        beside=CERTS,
        theirs={"other.test": (elsewhere, ["127.0.0.1:7003/v2", "other.test/v2"]), "empty.test": (None, [])},
    )
    yield Case(
        "config_path of two folders beside mirrors, a wildcard and TLS",
        debian + registry + "{}",
        mirrors(V2, {"quay.test": ["https://priv.test:7443"], "*": ["http://127.0.0.1:7001"]})
        + tls_of(V2, "priv.test:7443", ca_file=ca, **client),
        images=(*private, "other.test/c/d:1"),
        again=True,
        beside=f"{CERTS}:/etc/docker/certs.d",
    )
    yield Case(
        "in braces",
        debian + inline,
        '      mirrors = { "quay.test" = { endpoint = ["http://127.0.0.1:7002"] } }\n',
    )


def lines(text, without=""):
    """The settings and comments, without what the migration makes or takes."""
    gone = set(without.splitlines())
    ours = re.compile(r'\s*(config_path = .*|\[plugins\..*\.registry(\.mirrors)?\])$')
    return [line for line in text.splitlines() if line.strip() and line not in gone and not ours.match(line)]


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def attempt(case):
    for folder in (CERTS, STATE, os.path.dirname(DROP_IN)):
        shutil.rmtree(folder, ignore_errors=True)
    files = {CONFIG: case.text.replace("{}", "" if case.drop_in else case.older)}
    if case.drop_in:
        files[DROP_IN] = case.drop_in.replace("{}", case.older)
    for path, text in files.items():
        write(path, text)
    result = {"case": case.name, "again": case.again, "up_before": restart()}
    # With CRI down nobody is asked: what counts is whom the older settings alone ask.
    result["before"] = asked(case.images)
    result["stays"] = {}
    if case.beside:
        result["up_alone"], result["up_before"] = result["up_before"], stand_beside(case, files)
        result["stays"] = {host: asks for host, (text, asks) in case.theirs.items() if text}
    result["shown"] = sh("larder", "migrate")
    result["said"] = json.loads(sh("larder", "migrate", "--output", "json")[1] or "{}").get("hosts", [])
    result["written"] = sh("larder", "migrate", "--write")
    result["up_after"] = up(5)
    result["after"] = asked(case.images)
    result["second"] = sh("larder", "migrate", "--write")
    result["lost_or_new"] = [
        [before, after]
        for path, text in files.items()
        if (before := lines(text, case.older)) != (after := lines(read(path)))
    ]
    return result


def stand_beside(case, files):
    """Sets config_path, too; whether CRI is up then."""
    files[CONFIG] = files[CONFIG].replace('config_path = ""', f'config_path = "{case.beside}"')
    write(CONFIG, files[CONFIG])
    for host, (text, _) in case.theirs.items():
        os.makedirs(f"{CERTS}/{host}")
        if text:
            write(f"{CERTS}/{host}/hosts.toml", text)
    return restart(seconds=3)


BREAKS = """[Service]
ExecStartPre=/bin/sh -c '! grep -q certs.d /etc/containerd/config.toml'
"""
DROP_INS = "/etc/systemd/system/containerd.service.d"


def start_over(case):
    for folder in (CERTS, STATE):
        shutil.rmtree(folder, ignore_errors=True)
    write(CONFIG, case.text.replace("{}", case.older))
    return {"up_before": restart(), "before": asked(case.images)}


def rolled_back(case):
    """A containerd that does not start with the setting; `config dump` sees nothing wrong."""
    result = start_over(case) | {"case": "rolled back"}
    write(f"{DROP_INS}/breaks.conf", BREAKS)
    sh("systemctl", "daemon-reload")
    result["written"] = sh("larder", "migrate", "--write")
    shutil.rmtree(DROP_INS)
    sh("systemctl", "daemon-reload")
    result["up_after"] = up(30)
    result["after"] = asked(case.images)
    result["as_it_was"] = read(CONFIG) == case.text.replace("{}", case.older) and not os.path.exists(CERTS)
    return result


def not_cured(case):
    """CRI down before, and after it no containerd at all."""
    files = {CONFIG: case.text.replace("{}", case.older)}
    start_over(case)
    result = {"case": "not cured", "up_before": stand_beside(case, files)}
    write(f"{DROP_INS}/breaks.conf", BREAKS.replace("! grep -q certs.d", "grep -q mirrors"))
    sh("systemctl", "daemon-reload")
    result["written"] = sh("larder", "migrate", "--write")
    shutil.rmtree(DROP_INS)
    sh("systemctl", "daemon-reload")
    result["running"] = sh("systemctl", "is-active", "containerd")[1].strip()
    result["up_after"] = up(3)
    result["as_it_was"] = read(CONFIG) == files[CONFIG] and sorted(os.listdir(CERTS)) == sorted(case.theirs)
    return result


def killed(case):
    """Dead between the new configuration and containerd's restart: the next run does that."""
    result = start_over(case) | {"case": "killed"}
    inode = os.stat(CONFIG).st_ino
    larder = subprocess.Popen(["larder", "migrate", "--write"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while os.stat(CONFIG).st_ino == inode and larder.poll() is None:
        pass
    larder.kill()
    result["died"] = larder.wait()
    result["shown"] = sh("larder", "migrate")
    result["written"] = sh("larder", "migrate", "--write")
    result["second"] = sh("larder", "migrate", "--write")
    result["up_after"] = up(5)
    result["after"] = asked(case.images)
    return result


def main():
    listen()
    major = int(re.search(r" v?(\d+)\.\d+\.\d+", sh("containerd", "--version")[1]).group(1))
    debian, default = read(CONFIG), sh("containerd", "config", "default")[1]
    wanted, roll_back = [name for name in sys.argv[1:] if name != "--roll-back"], "--roll-back" in sys.argv
    for case in cases(debian, default, major):
        if not wanted or case.name in wanted:
            started = time.monotonic()
            result = attempt(case)
            print(json.dumps(result | {"seconds": round(time.monotonic() - started, 1)}), flush=True)
    first = next(iter(cases(debian, default, major)))
    print(json.dumps(killed(first)), flush=True)
    if roll_back:
        print(json.dumps(rolled_back(first)), flush=True)
        beside = next(case for case in cases(debian, default, major) if case.theirs)
        print(json.dumps(not_cured(beside)), flush=True)
    write(CONFIG, debian)


if __name__ == "__main__":
    main()
