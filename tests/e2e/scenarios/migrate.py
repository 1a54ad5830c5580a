"""Older mirror settings become hosts.toml, and a real CRI pull asks the same endpoints before and after."""

import json
import os
import subprocess

from machine import CONTAINERDS, DEBIANS, HERE, Unavailable
from report import at_least, has

SECONDS = 600
# Debian's own, and newer ones on testing.
MACHINES = {version: (suite, None) for suite, version in DEBIANS.items()}
MACHINES |= {version: ("forky", version) for version in CONTAINERDS}
NAMES = ("quay.test", "other.test", "mirror.test", "priv.test", "registry-1.docker.io")
PKI = "/etc/migrations"


def openssl(directory, *arguments):
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    subprocess.run(["openssl", *new, *arguments], cwd=directory, check=True, capture_output=True)


def certificates(directory):
    """The upstreams by the authority that the machines trust, a mirror and its client by one of their own."""
    names = "subjectAltName=" + ",".join(f"DNS:{name}" for name in NAMES)
    openssl(directory, "-subj", "/CN=private authority", "-keyout", "private-ca.key", "-out", "private-ca.crt")
    for name, authority in (("public", "ca"), ("private", "private-ca"), ("client", "private-ca")):
        openssl(
            directory,
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"),
            *("-addext", names, "-addext", "basicConstraints=CA:FALSE"),
        )


def prepare(t, suite, containerd):
    lab = t.lab(suite)
    certificates(lab.directory)
    node = lab.machine("node", containerd)
    for name in ("private-ca.crt", *(f"{n}.{kind}" for n in ("public", "private", "client") for kind in ("crt", "key"))):
        node.put(f"{PKI}/{name}", source=os.path.join(lab.directory, name))
    node.put("/usr/local/bin/migrations", source=os.path.join(HERE, "migrations.py"), mode=0o755)
    node.commands.append(f"echo 127.0.0.1 {' '.join(NAMES)} >> /etc/hosts")
    node.boot()
    return node


def run(t):
    nodes = {}
    for version, (suite, containerd) in MACHINES.items():
        try:
            nodes[version] = prepare(t, suite, containerd)
        except Unavailable as why:
            t.skip(f"containerd {version}", why)
    # Rolling back takes containerd's minute: one of them shows it.
    running = {
        version: node.start(f"migrations {'--roll-back' if version == '1.7' else ''} 2>&1")
        for version, node in nodes.items()
    }
    for version, process in running.items():
        said = process.communicate(timeout=SECONDS)[0]
        results = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        if not t.check(f"{version}: cases that ran", len(results), at_least(15)) or process.returncode != 0:
            t.note(said[-2000:])
        for result in results:
            judges = {"killed": judge_killed, "rolled back": judge_rolled_back, "not cured": judge_not_cured}
            judges.get(result["case"], judge)(t, version, result)
        t.note(f"{version}: {len(results)} cases, {sum(result.get('seconds', 0) for result in results):.0f}s")


def judge(t, version, result):
    name = f"{version}: {result['case']}"
    down = "up_alone" in result
    t.check(f"{name}: CRI up before and after", (result["up_before"], result["up_after"]), (not down, True))
    codes = tuple(result[step][0] for step in ("shown", "written", "second"))
    if not t.check(f"{name}: exit codes of showing, writing, a second time", codes, (10, 0, 0)):
        t.note(result["written"][1])
    if down:
        t.check(f"{name}: says that CRI is down", result["shown"][1], has("before: CRI down: config_path (/etc/"))
        t.check(f"{name}: up without config_path", result["up_alone"], True)
    before, after = dict(result["before"]), dict(result["after"])
    for image in [image for image in before if image.split("/", maxsplit=1)[0] in result["stays"]]:
        host = image.split("/", maxsplit=1)[0]
        del before[image]
        t.check(f"{name}: {image}: the hosts.toml that was there", places(image, after.pop(image)), result["stays"][host])
        t.check(f"{name}: {host}: said", result["shown"][1], has(f"{host}/hosts.toml stays, and replaces"))
    if version.startswith("2.") and result["again"]:
        # containerd 2 forgot the TLS settings: the migration says that they hold again, and they do.
        t.check(f"{name}: said", "holds again" in result["shown"][1] or "hold again" in result["shown"][1])
        before = {image: without_tls(asked) for image, asked in before.items()}
        t.check(f"{name}: the private mirror is asked again", any("client=client" in e or ":744" in e for a in after.values() for e in a))
        after = {image: without_tls(asked) for image, asked in after.items()}
    t.check(f"{name}: something was asked", sum(map(len, before.values())), at_least(2))
    t.check(f"{name}: the endpoints on the wire", after, before)
    t.check(f"{name}: other lines of the configuration", result["lost_or_new"], [])
    t.check(f"{name}: no secret shown", "xyzzy" in result["shown"][1] + result["written"][1], False)


    for image, asked in result["before"].items():
        host = next((one for one in result["said"] if one["host"] == image.split("/", maxsplit=1)[0]), None)
        if host and not (version.startswith("2.") and result["again"]):
            written = host["written"] if down else host["before"]
            said = [url.split(",")[0].split("://")[1].rstrip("/") for url in written]
            t.check(f"{name}: {image}: what it says is asked", list(dict.fromkeys(said)), places(image, asked))


def places(image, asked):
    """host/path of each place that was asked, once."""
    name = image.split("/", maxsplit=1)[1].rsplit(":", maxsplit=1)[0]
    urls = [event.split()[2] for event in asked]
    return list(dict.fromkeys(url.split(f"/{name}/manifests/")[0] for url in urls))


def judge_killed(t, version, result):
    name = f"{version}: killed before containerd's restart"
    t.check(f"{name}: died by", result["died"], -9)
    codes = tuple(result[step][0] for step in ("shown", "written", "second"))
    if not t.check(f"{name}: exit codes of showing, writing, a second time", codes, (10, 0, 0)):
        t.note(result["written"][1])
    t.check(f"{name}: CRI up before and after", (result["up_before"], result["up_after"]), (True, True))
    t.check(f"{name}: the endpoints on the wire", result["after"], result["before"])


def judge_rolled_back(t, version, result):
    name = f"{version}: containerd does not take it"
    t.check(f"{name}: exit code", result["written"][0], 1)
    t.check(f"{name}: what it says", result["written"][1], has("everything is back as it was"))
    t.check(f"{name}: files as they were", result["as_it_was"], True)
    t.check(f"{name}: CRI up before and after", (result["up_before"], result["up_after"]), (True, True))
    t.check(f"{name}: the endpoints on the wire", result["after"], result["before"])


def judge_not_cured(t, version, result):
    name = f"{version}: CRI down before, and containerd does not take the cure"
    t.check(f"{name}: exit code", result["written"][0], 1)
    t.check(f"{name}: what it says", result["written"][1], has("everything is back as it was"))
    t.check(f"{name}: files as they were", result["as_it_was"], True)
    t.check(f"{name}: containerd runs", result["running"], "active")
    t.check(f"{name}: CRI up before and after", (result["up_before"], result["up_after"]), (False, False))


def without_tls(asked):
    return [event for event in asked if not event.startswith(("7443", "7444"))]
