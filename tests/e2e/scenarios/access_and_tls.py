"""How a cache faces the outside: https and its renewal, who may ask, and what `larder status` says of all that."""

import json
import os
import time

from machine import CACHE
from report import at_least, exits, has, lacks
from scenarios.common import in_use, pulled, push, reference, second_apply_changes_nothing

SECONDS = 420
UPSTREAMS = ("docker.io", "ghcr.io")
GATEWAY, STRANGER = "10.0.20.1", "10.0.20.77"
REGISTRY_3 = os.path.join(CACHE, "bin/registry")
TEXTFILE = "/var/lib/prometheus/node-exporter"
PROFILE = """version: 1
upstreams:
  docker.io: {{ port: 5000, username: pull-bot, password: {{ file: /etc/larder/secrets/hub }} }}
  ghcr.io: {{ port: 5010 }}
network:
  interface: eth0
  addresses: [10.0.20.10/24]
  gateway: 10.0.20.1
  nameservers: {{ addresses: [10.0.20.1] }}
cache: {{ {cache} }}
containerd: {{}}
"""
TLS = "tls: { certificate: /etc/ssl/cache.crt, key: /etc/ssl/private/cache.key }"
ACCESS = f"access: [{GATEWAY}/32]"
# An answer's status, or why there was none; from an address of one's own, with an authority or without TLS.
ASK = """
import http.client, ssl, sys
source, port, authority = sys.argv[1:]
if authority == "none":
    ask = http.client.HTTPConnection("10.0.20.10", int(port), timeout=5, source_address=(source, 0))
else:
    trust = ssl.create_default_context(cafile=authority)
    ask = http.client.HTTPSConnection("10.0.20.10", int(port), timeout=5, source_address=(source, 0), context=trust)
try:
    ask.request("GET", "/v2/")
    print(ask.getresponse().status)
except OSError as error:
    print(type(error).__name__)
"""
# Asks without a pause until it is told to stop, each time by a new connection; how many were good, and what was not.
LOAD = """
import collections, http.client, os, ssl, sys
trust = ssl.create_default_context(cafile=sys.argv[1])
seen = collections.Counter()
while not os.path.exists(sys.argv[2]):
    try:
        ask = http.client.HTTPSConnection("10.0.20.10", 5010, timeout=20, context=trust)
        ask.request("GET", "/v2/")
        seen[str(ask.getresponse().status)] += 1
    except OSError as error:
        seen[type(error).__name__] += 1
print(dict(seen))
"""


class Certificates:
    def __init__(self, lab, node):
        self.lab, self.node, self.count = lab, node, 0
        self.authority = os.path.join(lab.directory, "lab-authority.crt")

    def make(self, *names):
        self.count += 1
        return self.lab.certificate(f"cache-{self.count}", *names, authority="lab-authority")

    def put(self, certificate, key):
        """As a renewer does: one file after the other, each by a rename."""
        for path, source, mode in (("/etc/ssl/private/cache.key", key, "600"), ("/etc/ssl/cache.crt", certificate, "644")):
            with open(source, encoding="utf-8") as file:
                self.node.write(path + ".new", file.read())
            self.node.sh(f"chmod {mode} {path}.new && mv {path}.new {path}")

    def serial(self, path):
        return self.lab("gw", "openssl", "x509", "-noout", "-serial", "-in", path).strip()

    def shown(self, port=5010):
        """The serial number of what a registry shows."""
        script = f"openssl s_client -connect 10.0.20.10:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        return self.lab.ask("gw", "sh", "-c", script).out.strip()


def ask(lab, source, port, authority="none"):
    return lab.ask("gw", "python3", "-c", ASK, source, str(port), authority).out.strip()


def access(t, lab, node):
    before = node.sh("larder plan --profile -", stdin=PROFILE.format(cache=""))
    t.check("credentials on an open cache", before.out, has("docker.io", "10.0.20.10, port 5000 can pull what `pull-bot` can"))
    node.write("/etc/larder/profile.yaml", PROFILE.format(cache=ACCESS))
    said = node.larder("apply")
    t.check("an allow-list: apply", said, exits(0))
    t.check("an allow-list: no warning of credentials", said.out, lacks("can pull what"))
    t.check("an address that may ask", [ask(lab, GATEWAY, port) for port in (5000, 5010)], ["200", "200"])
    t.check("an address that may not", ask(lab, STRANGER, 5000), "ConnectionRefusedError")
    t.check("the node itself", node.pull(*map(reference, UPSTREAMS)), pulled)
    second_apply_changes_nothing(t, node)
    # Somebody's own ruleset begins with an empty one.
    node.write("/etc/nftables.conf", "flush ruleset\n")
    t.check("another firewall is loaded", node.sh("systemctl restart nftables"), exits(0))
    again = node.wait("nft list table inet larder_access", 10)
    t.check("the table after it", again, exits(0))
    t.check("the firewall is stopped and started", node.sh("systemctl stop nftables && systemctl start nftables"), exits(0))
    node.wait("nft list table inet larder_access", 10)
    t.check("an address that may not, after it", ask(lab, STRANGER, 5000), "ConnectionRefusedError")
    # Without its table no registry starts.
    node.sh("systemctl stop larder-registry@ghcr.io larder-access && mv /usr/sbin/nft /usr/sbin/nft.away")
    node.sh("systemctl start larder-registry@ghcr.io")
    t.check("a registry without the table", node.out("systemctl is-active larder-registry@ghcr.io"), "inactive")
    node.sh("mv /usr/sbin/nft.away /usr/sbin/nft")
    t.check("apply puts it right", node.larder("apply"), exits(0))
    t.check("the registry after it", ask(lab, GATEWAY, 5010), "200")
    t.check("an address that may not, in the end", ask(lab, STRANGER, 5010), "ConnectionRefusedError")
    node.write("/etc/larder/profile.yaml", PROFILE.format(cache="access: open"))
    said = node.larder("apply")
    t.check("open with intent: apply", said, exits(0))
    t.check("open with intent: no warning of credentials", said.out, lacks("can pull what"))
    t.check("open with intent: a stranger", ask(lab, STRANGER, 5000), "200")
    t.check("open with intent: no table is left", node.out("nft list tables"), lacks("larder"))


def tls(t, lab, node, made):
    wrong = made.make("10.0.20.99", "cache.lab")
    made.put(*wrong[:2])
    node.write("/etc/larder/profile.yaml", PROFILE.format(cache=f"access: open, {TLS}"))
    said = node.larder("apply")
    t.check("a certificate for another address: exit code", said, exits(2))
    t.check("a certificate for another address: what it says", said.out, has("/etc/ssl/cache.crt is not for 10.0.20.10"))
    made.put(made.make("10.0.20.10")[0], wrong[1])
    said = node.larder("apply")
    t.check("another certificate's key: what it says", said.out, has("another certificate's key"))
    first = made.make("10.0.20.10", "cache.lab")
    made.put(*first[:2])
    said = node.larder("apply")
    t.check("https: apply", said, exits(0))
    # `certificate` is good for two days: told, and no failure.
    t.check("https: the certificate's end", said.out, has("renew it"))
    t.check("https: a client that trusts the authority", ask(lab, GATEWAY, 5010, made.authority), "200")
    t.check("https: nothing in the clear", ask(lab, GATEWAY, 5010), "400")
    t.check("https: hosts.toml", node.out("cat /etc/containerd/certs.d/ghcr.io/hosts.toml"), has("https://10.0.20.10:5010"))
    in_use(t, node, "https://10.0.20.10:5000", "https://10.0.20.10:5010")
    node.forget()
    mark = lab.upstream.mark()
    t.check("https: pulls", node.pull(*map(reference, UPSTREAMS)), pulled)
    t.check("https: blobs asked of the upstream", lab.upstream.requests(mark, "ghcr.io"), [])
    key = "/run/credentials/larder-registry@ghcr.io.service/tls.key"
    t.check("the key's mode for the registry", node.out("stat -c %a /etc/ssl/private/cache.key"), "600")
    t.check("the registry's user and the key", node.sh("setpriv --reuid larder --clear-groups cat /etc/ssl/private/cache.key"), exits(1))
    t.check("what the registry reads", node.sh(f"test -s {key}"), exits(0))
    second_apply_changes_nothing(t, node)


def renewal(t, lab, node, made, engine, refused):
    """A renewed pair of files, under load."""
    stop = os.path.join(lab.directory, f"stop-{engine}")
    load = lab.upstream.daemon("gw", "sh", "-c", f"python3 -c '{LOAD}' {made.authority} {stop} > {stop}.seen")
    time.sleep(1)
    new = made.make("10.0.20.10", "cache.lab")
    started = time.monotonic()
    made.put(*new[:2])
    wanted, shown = made.serial(new[0]), ""
    while shown != wanted and time.monotonic() < started + 60:
        shown = made.shown()
        time.sleep(0.3)
    seconds = time.monotonic() - started
    t.check(f"{engine}: the renewed certificate is shown", shown, wanted)
    while made.shown(5000) != wanted and time.monotonic() < started + 60:
        time.sleep(0.3)
    t.check(f"{engine}: by the other registry, too", made.shown(5000), wanted)
    open(stop, "w").close()
    load.wait(timeout=40)
    with open(stop + ".seen", encoding="utf-8") as file:
        seen = eval(file.read())  # a dict of ours
    t.note(f"{engine}: the renewed certificate was shown after {seconds:.1f}s; answers meanwhile: {seen}")
    t.check(f"{engine}: answers meanwhile", seen.get("200", 0), at_least(10))
    if refused is not None:
        t.check(f"{engine}: connections refused meanwhile", seen.get("ConnectionRefusedError", 0), refused)
    t.check(f"{engine}: verify", node.larder("verify"), exits(0))


def half_renewed(t, node, made):
    """A certificate without its key is not taken; what runs goes on."""
    before = made.shown()
    new = made.make("10.0.20.10")
    with open(new[0], encoding="utf-8") as file:
        node.write("/etc/ssl/cache.crt", file.read())
    failed = node.wait("systemctl is-failed larder-tls.service", 15)
    t.check("a certificate without its key: who says so", failed.out.strip(), "failed")
    t.check("a certificate without its key: what is shown", made.shown(), before)
    made.put(*new[:2])
    wanted = made.serial(new[0])
    for port in (5000, 5010):
        deadline = time.monotonic() + 30
        while made.shown(port) != wanted and time.monotonic() < deadline:
            time.sleep(0.3)
        t.check(f"the key is there, too: what port {port} shows", made.shown(port), wanted)
    node.wait("! systemctl is-active larder-registry@ghcr.io larder-registry@docker.io | grep -v ^active", 30)


def status(t, lab, node):
    seen = node.larder("status", "--output", "json")
    found = json.loads(seen.out)
    one = {upstream["host"]: upstream for upstream in found["upstreams"]}["ghcr.io"]
    t.check("status: version", found["version"], 2)
    t.check("status: health", one["registry"]["health"], "up")
    t.check("status: address", one["registry"]["address"], "10.0.20.10:5010")
    t.check("status: next times", [kind for kind in ("gc", "restart") if "next" not in one["jobs"][kind]], [])
    t.check("status: the certificate", found["cache"]["certificate"]["path"], "/etc/ssl/cache.crt")
    # Two days are few.
    t.check("status: exit code with a certificate that ends soon", seen, exits(4))
    table = node.larder("status").out
    t.check("status: widest line of the table", max(map(len, table.split("\n!")[0].splitlines())) <= 100)
    t.check("status: what the table says", table, has("ghcr.io", " up ", "5010", "renew it"))
    t.note(table)
    t.check("status: one upstream", node.larder("status", "ghcr.io").out, has("health     up", "address    10.0.20.10:5010"))
    t.check("status: none such", node.larder("status", "quay.io"), exits(2))
    t.check("status: again and again", node.sh("timeout 5 larder status --watch | grep -c UPSTREAM").out.strip() in ("4", "5", "6"))
    told = node.wait(f"test -s {TEXTFILE}/larder.prom", 90)
    t.check("metrics: the timer's file", told, exits(0))
    text = node.out(f"cat {TEXTFILE}/larder.prom")
    t.check(
        "metrics: what they say",
        text,
        has('larder_registry_up{upstream="ghcr.io"} 1', "larder_certificate_expiry_timestamp_seconds{", "# EOF"),
    )
    t.check("metrics: nothing else is left there", node.out(f"ls -A {TEXTFILE}"), "larder.prom")
    t.check("metrics: its mode", node.out(f"stat -c '%a %U' {TEXTFILE}/larder.prom"), "644 root")
    node.sh("systemctl stop larder-registry@ghcr.io")
    t.check("status: with a registry that is down", node.larder("status"), exits(4))
    t.check("status: which one", node.larder("status").out, has("larder-registry@ghcr.io.service down"))
    t.check("metrics: with a registry that is down", node.larder("status", "--metrics"), exits(0))
    t.check("metrics: which one", node.larder("status", "--metrics").out, has('larder_registry_up{upstream="ghcr.io"} 0'))
    node.sh("systemctl start larder-registry@ghcr.io")


def gone(t, node):
    node.write("/etc/larder/profile.yaml", PROFILE.format(cache="access: open"))
    t.check("https goes: apply", node.larder("apply"), exits(0))
    left = node.out("grep -rl 'tls\\|https://10' /etc/systemd/system /etc/larder /etc/containerd/certs.d --include='*larder*' --include='*.yml' --include='hosts.toml'")
    t.check("https goes: what is left of it", [line for line in left.split() if "/larder-tls" not in line], [])
    t.check("https goes: its units", node.out("systemctl is-active larder-tls.path larder-tls.timer").split(), ["inactive"] * 2)
    node.forget()
    t.check("https goes: pulls", node.pull(*map(reference, UPSTREAMS)), pulled)


def removed(t, node):
    node.write("/etc/larder/profile.yaml", PROFILE.format(cache="access: [10.0.20.0/24]"))
    t.check("access again: apply", node.larder("apply"), exits(0))
    t.check("access again: the table", node.out("nft list tables"), has("larder_access"))
    t.check("remove: exit code", node.larder("remove", "--purge"), exits(0))
    t.check("remove: the table of cache.access", node.out("nft list tables"), lacks("larder"))
    t.check("remove: the file for Prometheus", node.out(f"ls -A {TEXTFILE}"), "")
    t.check("remove: units", node.out("systemctl list-units --all --plain --no-legend 'larder*'"), "")


def run(t):
    lab = t.lab(flavour="nftables")
    push(lab, "1", upstreams=UPSTREAMS)
    lab("gw", "ip", "address", "add", f"{STRANGER}/24", "dev", "br0")
    node = lab.machine("node")
    node.put("/etc/larder/secrets/hub", "x\n", mode=0o600)
    node.put(f"{TEXTFILE}/.keep", "")
    if os.path.isfile(REGISTRY_3):
        node.put("/usr/local/lib/registry", source=REGISTRY_3, mode=0o755)
    node.boot()
    node.sh(f"rm {TEXTFILE}/.keep")
    made = Certificates(lab, node)
    access(t, lab, node)
    tls(t, lab, node, made)
    renewal(t, lab, node, made, "2.8", None)
    half_renewed(t, node, made)
    status(t, lab, node)
    if os.path.isfile(REGISTRY_3):
        cache = f"access: open, engine: {{ binary: /usr/local/lib/registry }}, {TLS}"
        node.write("/etc/larder/profile.yaml", PROFILE.format(cache=cache))
        t.check("3.x: apply", node.larder("apply"), exits(0))
        sockets = node.out("systemctl list-units --plain --no-legend 'larder-registry@*.socket'")
        renewal(t, lab, node, made, "3.x", 0 if sockets else None)
    else:
        t.skip("renewal with Distribution 3", f"no {REGISTRY_3}")
    gone(t, node)
    removed(t, node)
