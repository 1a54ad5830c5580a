"""The cloud-init examples, as they are shipped, each on a machine; and what a failure of theirs looks like."""

import concurrent.futures
import json
import os
import re

from debian import KEY_BEGIN, KEY_END, TREE, Repository
from machine import changed
from report import exits, has, lacks
from scenarios.common import WATCHED, has_its_address, pulled, push, reference

SECONDS = 900  # seven machines, four boots
SEED = "/var/lib/cloud/seed/nocloud"
# What Proxmox VE writes for `qm set --ipconfig0 ip=…,gw=… --nameserver …`, and its user-data.
PROXMOX_NETWORK = """version: 1
config:
    - type: physical
      name: eth0
      subnets:
      - type: static
        address: '{address}'
        netmask: '255.255.255.0'
        gateway: '10.0.20.1'
    - type: nameserver
      address:
      - '10.0.20.1'
      search:
      - 'lab.test'
"""
PROXMOX_USER = """#cloud-config
hostname: {name}
manage_etc_hosts: true
fqdn: {name}.lab.test
chpasswd:
  expire: False
users:
  - default
package_upgrade: true
"""
# Instance data that stand for machines of each kind, and what has to be in their profiles.
KINDS = {
    "none": ({}, ('caches: ["10.0.20.10"]',), ("cache: {}", "network:")),
    "client": ({"role": "client", "caches": ["10.0.20.11"]}, ('caches: ["10.0.20.11"]',), ("cache: {}",)),
    "cache": ({"role": "cache"}, ("cache: {}",), ("containerd:",)),
    "both": (
        {"role": "both", "address": "10.0.20.12/24", "gateway": "10.0.20.1"},
        ("cache: {}", "containerd: {}", "addresses: [10.0.20.12/24]", "nameservers: { addresses: [10.0.20.1] }"),
        (),
    ),
}
PROFILE = (
    "import sys, yaml; [f] = [f for f in yaml.safe_load(open(sys.argv[1]))['write_files'] if f['path'].endswith('profile.yaml')];"
    "assert f['permissions'] == '0600', f; print(f['content'], end='')"
)


def shipped(name):
    with open(os.path.join(TREE, "packaging/cloud-init", name), encoding="utf-8") as file:
        return file.read()


def run(t):
    lab = t.lab()
    push(lab, "1", upstreams=("docker.io", "ghcr.io"))
    repository = Repository(lab)
    # The two places that are an operator's own.
    cache = shipped("cache.yaml")
    mine = "".join(f"       {line or '.'}\n" for line in repository.key.strip().splitlines())
    begin, end = cache.index(" " * 7 + KEY_BEGIN), cache.index(KEY_END) + len(KEY_END) + 1
    cache = cache[:begin] + mine + cache[end:]
    client = shipped("client.yaml").replace("SHA256:" + "0" * 64, f"SHA256:{repository.sha256}")

    nodes = {
        "cache": fresh(lab, "cache", "bookworm", cache),
        "both": baked(lab, "both", "forky", shipped("both.yaml"), repository),
        "proxmox": proxmox(lab, "bookworm", repository),
    }
    refused = shipped("both.yaml").replace("5010", "5000")
    down = shipped("both.yaml").replace("{ port: 5010 }", "{ port: 5010, remote: 'https://10.0.20.1:9' }")
    down = down.replace("cache: {} ", "verify: { upstreams: require }\n      cache: {} ")
    broken = {
        "bookworm": baked(lab, "refused", "bookworm", refused, repository),
        "trixie": fresh(lab, "untrusted", "trixie", shipped("client.yaml")),
        "forky": baked(lab, "down", "forky", down, repository),
    }
    together(lambda node: node.boot(), [*nodes.values(), *broken.values()])
    examples_are_valid(t, broken)
    failures_are_seen(t, broken)
    nodes["client"] = fresh(lab, "client", "trixie", client)
    # Without its own meta-data it is a client.
    nodes["plain"] = proxmox(lab, "forky", repository, own=False)
    together(lambda node: node.boot(), [nodes["client"], nodes["plain"]])

    are_right(t, nodes, "first boot")
    for name, node in nodes.items():
        modes = node.out("stat -c '%a %U' /etc/larder/profile.yaml")
        t.check(f"{name}: mode and owner of the profile", modes, "600 root")
    has_its_address(t, nodes["cache"], "of the cache")
    has_its_address(t, nodes["proxmox"], "of Proxmox's form", "10.0.20.12")
    written = nodes["proxmox"].out("ls /etc/systemd/network /etc/cloud/cloud.cfg.d")
    t.check("files of ours for the address that Proxmox gave", written, lacks("larder"))
    t.check("the package on the cache", nodes["cache"].out("dpkg-query -W -f '${db:Status-Abbrev}' larder").strip(), "ii")
    for name in ("client", "both", "proxmox", "plain"):
        t.check(f"{name}: pull through CRI", nodes[name].pull(reference("ghcr.io")), pulled)
    asked = nodes["cache"].out("journalctl -b -u larder-registry@ghcr.io")
    t.check("who asked the cache", asked, has("containerd/"))

    # The cache stays: clients that find it away take it out of their files, as they should.
    clients = [nodes[name] for name in ("client", "plain")]
    second_boot(t, {name: node for name, node in nodes.items() if name != "cache"})
    together(lambda node: node.stop(), clients)
    # Corrected, and a new instance: what is in it is done again.
    down = broken["forky"]
    down.put(f"{SEED}/user-data", shipped("both.yaml"))
    second_boot(t, {"cache": nodes["cache"]}, lambda: together(again, [nodes["both"], nodes["proxmox"], down]))
    again(nodes["cache"])
    together(again, clients)
    are_right(t, {**nodes, "down": down}, "new instance")
    for name, node in {**nodes, "down": down}.items():
        t.check(f"{name}: cloud-init's instance", node.out("cat /var/lib/cloud/data/instance-id"), "i-again")


def second_boot(t, nodes, meanwhile=lambda: None):
    before = together(lambda node: node.snapshot(*WATCHED), nodes.values())
    together(lambda work: work(), [*(node.reboot for node in nodes.values()), meanwhile])
    are_right(t, nodes, "second boot")
    for (name, node), files in zip(nodes.items(), before):
        wrote = [line for line in changed(files, node.snapshot(*WATCHED)) if re.search("larder|certs.d|containerd", line)]
        t.check(f"{name}: files of ours that the second boot wrote", wrote, [])


def together(work, nodes):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, nodes))


def fresh(lab, name, suite, user_data):
    """A machine that has no larder."""
    node = lab.machine(name, suite=suite)
    del node.files["/usr/local/bin/larder"]
    node.seed(user_data)
    return node


def baked(lab, name, suite, user_data, repository):
    """A machine of an image that has the package."""
    node = fresh(lab, name, suite, user_data)
    node.put("/root/larder.deb", source=repository.deb)
    node.commands.append("dpkg --install /root/larder.deb >/dev/null")
    return node


def proxmox(lab, suite, repository, own=True):
    name, address = ("proxmox", "10.0.20.12") if own else ("plain", "10.0.20.13")
    node = baked(lab, name, suite, PROXMOX_USER.format(name=name), repository)
    node.put(f"{SEED}/vendor-data", shipped("proxmox-vendor-data.yaml"))
    node.put(f"{SEED}/network-config", PROXMOX_NETWORK.format(address=address))
    # Its own meta-data is an instance-id alone: the digest of the rest.
    node.put(f"{SEED}/meta-data", shipped("proxmox-meta-data.yaml") if own else "instance-id: 2fd4e1c67a2d28fced849ee1bb76e739\n")
    return node


def again(node):
    """The same seed for another instance."""
    node.stop()
    meta = "instance-id: i-again\n" + ("" if node.name == "plain" else f"local-hostname: {node.name}\n")
    if node.name == "proxmox":
        meta = shipped("proxmox-meta-data.yaml").replace("instance-id: cache-1", "instance-id: i-again")
    node.put(f"{SEED}/meta-data", meta)
    node.boot()


def status(node):
    said = node.out("cloud-init status --format json")
    return json.loads(said[said.index("{") :])


def are_right(t, nodes, when):
    def look(node):
        said = status(node)
        return (
            (said["status"], said["errors"]),
            node.out("systemctl --failed --no-legend --plain"),
            *(node.larder(command) for command in ("verify", "status", "plan")),
            node.out("journalctl -b --no-pager | grep -i 'ordering cycle'"),
        )

    for name, (said, failed, verify, now, plan, cycles) in zip(nodes, together(look, nodes.values())):
        name = f"{name}, {when}"
        t.check(f"{name}: cloud-init's status and errors", said, ("done", []))
        t.check(f"{name}: failed units", failed, "")
        t.check(f"{name}: verify", verify, exits(0))
        t.check(f"{name}: status", now, exits(0))
        t.check(f"{name}: plan", plan, exits(0))
        t.check(f"{name}: ordering cycles", cycles, "")


def failures_are_seen(t, broken):
    """In `cloud-init status`, in its log, in the journal, and in larder.service where the image has it."""
    words = {
        "bookworm": ("error: ", "5000"),
        "trixie": ("hash", "larder.deb"),
        "forky": ("10.0.20.1:9",),
    }
    for suite, node in broken.items():
        said = node.sh("cloud-init status --long")
        t.check(f"{suite}: cloud-init status --long of a failure: exit code", said, exits(1))
        t.check(f"{suite}: cloud-init status --long of a failure", said.out, has("status: error", "scripts-user"))
        for where in ("cat /var/log/cloud-init-output.log", "journalctl -b --no-pager"):
            t.check(f"{suite}: {where} of a failure", "\n".join(node.out(where).splitlines()[-400:]).lower(), has(*words[suite]))
    for suite in ("bookworm", "forky"):
        unit = broken[suite].show("larder.service", "ActiveState", "Result")
        t.check(f"{suite}: larder.service of a failure", unit, {"ActiveState": "failed", "Result": "exit-code"})
    t.check("forky: larder's code for what is down", broken["forky"].larder("verify"), exits(4))
    t.check("trixie: larder after a download that was not trusted", broken["trixie"].sh("command -v larder"), exits(127))


def examples_are_valid(t, nodes):
    """To each cloud-init, and their profiles to larder."""

    def look(node):
        """For each file: what it became, what its schema is said to be, what larder says of its profile."""
        said = {}
        node.write("/tmp/vendor-data", shipped("proxmox-vendor-data.yaml"))
        for name in ("cache.yaml", "client.yaml", "both.yaml"):
            node.write(f"/tmp/{name}", shipped(name))
            said[name] = node.sh("true")
        for kind, (own, *_) in KINDS.items():
            data = {"v1": {"local_hostname": kind}, "ds": {"meta_data": {"larder": own} if own else {}}}
            node.write("/tmp/instance.json", json.dumps(data))
            name = f"proxmox-{kind}.yaml"
            said[name] = node.sh(f"cloud-init devel render /tmp/vendor-data --instance-data /tmp/instance.json | tee /tmp/{name}")
        check = "true" if node.name == "untrusted" else "larder check --profile /tmp/profile.yaml"
        return {
            name: (
                rendered,
                node.sh(f"cloud-init schema --config-file /tmp/{name}"),
                node.sh(f'python3 -c "{PROFILE}" /tmp/{name} > /tmp/profile.yaml && {check}'),
            )
            for name, rendered in said.items()
        }

    for (suite, node), said in zip(nodes.items(), together(look, nodes.values())):
        version = node.out("cloud-init --version 2>&1").split()[-1]
        for name, (rendered, schema, profile) in said.items():
            what = f"{name} with cloud-init {version}"
            _, wanted, unwanted = KINDS.get(name[len("proxmox-") : -len(".yaml")], ({}, (), ()))
            t.check(f"{what}: rendered", rendered.out, has(*wanted))
            t.check(f"{what}: rendered without", rendered.out, lacks("CI_MISSING", *unwanted))
            t.check(f"{what}: schema", schema, exits(0))
            t.check(f"{what}: what the schema says", schema.out.lower(), has("valid"))
            t.check(f"{what}: what is deprecated", schema.out.lower(), lacks("deprecated"))
            t.check(f"{what}: its profile, 0600, and `larder check`", profile, exits(0))
