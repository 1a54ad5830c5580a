"""Packer builds an image with larder baked in; its first boot does what the image could not, its second nothing.

qemu emulates the processor: a boot is a minute of computing. `make soak` boots it a second time, and a third time with
a profile that is refused; `make test` builds it and boots it once, and leaves the rest to `first-boot`, in containers.
"""

import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request

from debian import TREE, package
from machine import HERE, PREFIX, real_directory
from machine import run as host
from report import exits, has, lacks
from vm import VM, emulated, key

SECONDS = 2400  # at worst, with packages to be built
PACKER = os.path.join(TREE, "packaging/packer")
WHOLE = bool(os.environ.get("LARDER_SOAK"))
SUMS = "find /etc/containerd /etc/larder /etc/systemd/system /usr/lib/larder -type f -exec sha256sum {} + | sort -k 2"
# What a machine of the fleet has for its operator; and a look at the image before larder.service.
OPERATOR = f"""
ssh_authorized_keys:
  - KEY
disable_root: false
ssh_genkeytypes: [ed25519]
bootcmd:
  - {SUMS} > /root/image.sums
"""


def run(t):
    for program in ("packer", "qemu-system-x86_64", "xorriso"):
        if shutil.which(program) is None:
            t.skip("all of it", f"no {program}: `make deps` could not install it")
            return
    disk = host([os.path.join(HERE, "disk"), "bookworm"], timeout=600).out.strip().splitlines()[-1]
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-0-", dir=real_directory())
    machine = None
    try:
        formatted(t)
        image = build(t, disk, folder)
        if image is not None:
            machine = VM(folder, disk, image)
            boots(t, machine)
    finally:
        if machine is not None:
            machine.kill()
        shutil.rmtree(folder, ignore_errors=True)


def formatted(t):
    t.check("packer fmt -check", host(["packer", "fmt", "-check", "-diff", PACKER]), exits(0))


def build(t, disk, folder):
    values = {
        "source_image": f"{disk}/disk.qcow2",
        "source_checksum": "sha256:" + host(["sha256sum", f"{disk}/disk.qcow2"]).out.split()[0],
        "larder_deb": package(t.larder),
        "ssh_key": key(folder),
        "fleet_profile": os.path.join(PACKER, "fleet.yaml"),
        "output": os.path.join(folder, "image"),
        "accelerator": "tcg",
        "qemuargs": [*emulated(disk), ["-serial", f"file:{folder}/build.console"]],
    }
    with open(os.path.join(folder, "values.pkrvars.json"), "w", encoding="utf-8") as file:
        json.dump(values, file)
    environment = {**os.environ, "PACKER_CACHE_DIR": os.path.join(folder, "cache"), "CHECKPOINT_DISABLE": "1", "HOME": folder}
    common = [f"-var-file={folder}/values.pkrvars.json", os.path.join(PACKER, "larder.pkr.hcl")]
    t.check("packer validate", host(["packer", "validate", *common], env=environment), exits(0))
    started = time.monotonic()
    built = host(["packer", "build", "-color=false", *common], env=environment, timeout=1200)
    t.note(f"packer build: {time.monotonic() - started:.0f}s")
    if not t.check("packer build", built, exits(0)):
        t.note(built.out[-4000:])
        return None
    said = built.out[built.out.find("larder apply --root") :]
    t.check("what apply says in the build", said[:1500], has(" created, ", "0 to create, 0 to change, 0 to remove"))
    image = os.path.join(folder, "image/larder.qcow2")
    t.note(f"image: {os.path.getsize(image) // 2**20} MiB, source {os.path.getsize(values['source_image']) // 2**20} MiB")
    return image


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status
    except (urllib.error.URLError, OSError) as error:
        return str(error)


def boots(t, node):
    with open(os.path.join(PACKER, "node-user-data.yaml"), encoding="utf-8") as file:
        user_data = file.read()
    with open(node.key + ".pub", encoding="utf-8") as file:
        user_data += OPERATOR.replace("KEY", file.read().strip())
    node.seed(user_data, "node-1")
    node.boot(5000, 5010)
    t.check("first boot: cloud-init", node.settled(), exits(0))
    # The end of it: systemd's lines, and what runcmd printed.
    t.check("first boot: the console", node.tail("console", 8000), has("nothing to change"))
    first = state(t, node, "first boot")
    t.check("first boot: what it says of itself", node.out("journalctl -b -u larder --output cat"), has("created"))
    settle(node)
    image, files = (sums(node.out(command)) for command in ("cat /root/image.sums", SUMS))
    t.check("in the image already", sorted(image), lambda got: set(BAKED) <= set(got))
    changed = sorted(path for path, digest in image.items() if files.get(path) != digest)
    t.check("first boot: what it changed of the image's files", changed, [])
    own = sorted(files.keys() - image.keys())
    t.check("first boot: what it made", [path for path in own if "larder" not in path], [])
    t.check("first boot: the registries' files", own, lambda got: "/etc/larder/registry/docker.io.yml" in got)
    t.check("the build's key", node.sh("grep -rl BEGIN.OPENSSH /root/.ssh"), exits(1))
    t.check("the package's file", node.out("ls /var/tmp"), lacks("larder.deb"))
    if not WHOLE:
        t.skip("the second boot, and one that fails", "`make soak` has the time")
        return
    node.off()

    node.boot(5000, 5010)
    t.check("second boot: cloud-init", node.settled(), exits(0))
    second = state(t, node, "second boot")
    t.check("second boot: a machine id of its own, kept", second, first)
    t.check("second boot: larder.service", node.out("journalctl -b -u larder --output cat"), has("nothing to change"))
    settle(node)
    t.check("second boot: files", sums(node.out(SUMS)), files)
    node.off()
    fails(t, node, user_data)


BAKED = [
    "/etc/containerd/certs.d/docker.io/hosts.toml",
    "/etc/containerd/certs.d/ghcr.io/hosts.toml",
    "/usr/lib/larder/profile.yaml",
]


def sums(text):
    return {path: digest for digest, path in (line.split(None, 1) for line in text.splitlines())}


def settle(node):
    """Until the watch has put back what did not answer yet while the machine booted."""
    deadline = time.monotonic() + 90
    while node.sh("larder status").code != 0 and time.monotonic() < deadline:
        time.sleep(3)


def state(t, node, when):
    """What a machine of the fleet has to be; its id."""
    said = json.loads(node.out("cloud-init status --format json"))
    t.check(f"{when}: cloud-init's errors", (said["status"], said["errors"]), ("done", []))
    for port in (5000, 5010):
        t.check(f"{when}: the registry on {port}", answers(f"http://127.0.0.1:{node.forward[port]}/v2/"), 200)
    t.check(f"{when}: failed units", node.out("systemctl --failed --no-legend --plain"), "")
    status = json.loads(node.out("cat /run/larder/status.json"))
    t.check(f"{when}: status file", status["ok"] and not status["down"], True)
    t.check(f"{when}: address", node.out("ip -4 -o addr show"), has("10.0.20.10/24"))
    t.check(f"{when}: no DHCP address", node.out("ip -4 -o addr show"), lacks("dynamic"))
    t.check(f"{when}: containerd reads", node.out("containerd config dump"), has('config_path = "/etc/containerd/certs.d"'))
    t.check(f"{when}: its first endpoint", node.out("cat /etc/containerd/certs.d/ghcr.io/hosts.toml"), has("http://10.0.20.10:5010"))
    t.check(f"{when}: plan", node.sh("larder plan"), exits(0))
    t.check(f"{when}: cycles", node.out("journalctl -b | grep -i 'ordering cycle'"), "")
    t.note(f"{when}: " + node.out("systemd-analyze time | head -n1"))
    t.note(node.out("systemd-analyze critical-chain --no-pager larder.service | head -n12"))
    return node.out("cat /etc/machine-id")


def fails(t, node, user_data):
    node.seed(user_data.replace("cache: {}", "cache: { storage: relative }"), "node-2")
    node.boot(5000)
    t.check("a boot that fails: cloud-init", node.settled(), exits(1))
    console = node.tail("console", 10**6)
    t.check("a boot that fails: its console", console, has("Failed to start larder.service", "error: "))
    t.check("a boot that fails: the registry runs on", answers(f"http://127.0.0.1:{node.forward[5000]}/v2/"), 200)
    node.off()
