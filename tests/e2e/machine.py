"""A lab, its machines, and what a scenario asks of them."""

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass

import fake
from upstream import NAMES, Upstream

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("LARDER_CACHE") or "/var/cache/larder-dev"
PREFIX = "larder-e2e-"
KILL = "[Service]\nSystemCallErrorNumber=kill\n"


@dataclass
class Result:
    code: int
    out: str
    seconds: float = 0.0

    def __str__(self):
        return f"exit {self.code}: {self.out}"


def run(command, stdin=None, env=None, timeout=180):
    """Run a command on this host, its two outputs as one text."""
    start = time.monotonic()
    done = subprocess.run(
        command,
        input=stdin,
        env=env,
        timeout=timeout,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **({} if stdin is not None else {"stdin": subprocess.DEVNULL}),
    )
    return Result(done.returncode, done.stdout, time.monotonic() - start)


def image(suite, flavour=None):
    """The directory of the suite's image, or of one of its flavours; the first call of all may build it."""
    command = [os.path.join(HERE, "flavour"), suite, flavour] if flavour else [os.path.join(HERE, "image"), suite]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


PATIENCE = 60  # seconds


class Unavailable(Exception):
    """Something optional that this host has not got: a scenario skips, with this as the reason."""


# By image: what Debian carries.
DEBIANS = {"bookworm": "1.6", "trixie": "1.7", "forky": "2.1"}
# What tests/deps builds: versions' first two numbers, and programs. `make soak` adds one.
CONTAINERDS = tuple(os.environ.get("LARDER_CONTAINERDS", "2.4").split())
CONTAINERD_PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2")


def containerd_programs(version):
    """Paths of the programs of a containerd that is newer than Debian's."""
    folder = os.path.join(CACHE, f"bin/containerd-{version}")
    paths = [os.path.join(folder, name) for name in CONTAINERD_PROGRAMS]
    if not all(os.access(path, os.X_OK) for path in paths):
        raise Unavailable(f"no containerd in {folder}: `make deps` could not build it, so nothing here ran with it")
    return paths


def real_directory():
    """A place for machines. overlayfs cannot carry the upper layer of another one."""
    for place in filter(None, (os.environ.get("LARDER_E2E_DIR"), "/var/tmp", "/tmp", "/dev/shm")):
        kind = run(["stat", "-f", "-c", "%T", place]).out.strip()
        if kind not in ("overlayfs", "fuseblk", "nfs"):
            return place
    raise OSError("find a directory for machines: all are on overlayfs (set LARDER_E2E_DIR)")


def sweep():
    """Remove what killed runs left: labs whose names carry a process that is gone."""
    for path in glob.glob(os.path.join(real_directory(), PREFIX + "*")):
        owner, count, _ = os.path.basename(path)[len(PREFIX) :].split("-", 2)
        if not os.path.exists(f"/proc/{owner}"):
            run(
                [os.path.join(HERE, "lab"), "clean"],
                env={**os.environ, "LAB_DIR": path, "LAB_NET": f"{PREFIX}{owner}-{count}"},
            )
            shutil.rmtree(path, ignore_errors=True)


class Lab:
    """A private network with one gateway, its upstream, and machines. `close` removes it all."""

    count = 0

    def __init__(self, larder, suite="bookworm", flavour=None):
        Lab.count += 1
        name = f"{PREFIX}{os.getpid()}-{Lab.count}"
        self.larder, self.image = larder, image(suite, flavour)
        self.directory = tempfile.mkdtemp(prefix=name + "-", dir=real_directory())
        self.command = [os.path.join(HERE, "lab")]
        self.env = {**os.environ, "LAB_DIR": self.directory, "LAB_NET": name, "LAB_OWNER": str(os.getpid())}
        self.upstream = Upstream(self, self.image, self.directory)
        self.machines, self.fakes = [], []

    def open(self):
        self("gw", "true")  # makes the gateway, before two commands at once would
        self.upstream.serve_names()
        self.upstream.start()

    def close(self):
        for made in self.fakes:
            made.close()
        self.upstream.close()
        self.ask("clean")
        shutil.rmtree(self.directory, ignore_errors=True)

    def ask(self, *arguments, stdin=None, timeout=300):
        return run([*self.command, *arguments], stdin=stdin, env=self.env, timeout=timeout)

    def __call__(self, *arguments, stdin=None):
        """The output of a lab command that must work."""
        done = self.ask(*arguments, stdin=stdin)
        if done.code != 0:
            raise OSError(f"{' '.join(arguments[:6])}: {done}")
        return done.out

    def machine(self, name, containerd=None, suite=None, flavour=None):
        """A machine with the image's containerd, or one that tests/deps built ("2.3"): may raise Unavailable.

        It is of the lab's own image, or of another suite's.
        """
        made = Machine(self, name)
        if suite is not None:
            made.image = image(suite, flavour)
        if containerd is not None:
            # Over Debian's, where its unit looks for it.
            for path in containerd_programs(containerd):
                made.put("/usr/bin/" + os.path.basename(path), source=path, mode=0o755)
        self.machines.append(made)
        return made

    # ---- faults; see fake.py
    def fake(self):
        """A process at the gateway that plays caches."""
        self.fakes.append(fake.Fake(self))
        return self.fakes[-1]

    def address(self, address):
        """One more address of the gateway's."""
        self("gw", "ip", "addr", "replace", f"{address}/32", "dev", "br0")

    def blackhole(self, address):
        """TCP to an address of the gateway's vanishes: no answer of any kind. ARP is answered still."""
        # A rule of its own, before the one for local addresses. `ipproto` leaves ARP's own lookup alone.
        self("gw", "sh", "-ec", "ip rule | grep -q '^100:' || { ip rule add lookup local pref 100; ip rule del pref 0; }")
        self("gw", "ip", "rule", "add", "to", address, "ipproto", "tcp", "pref", "10", "blackhole")

    def restore(self, address):
        self("gw", "ip", "rule", "del", "to", address, "ipproto", "tcp", "blackhole")

    def certificate(self, name, *subjects, authority="ca", client=False):
        return fake.certificate(self.directory, name, *subjects, authority=authority, client=client)


class Machine:
    """One Debian machine. Nothing runs until `boot`."""

    def __init__(self, lab, name):
        self.lab, self.name, self.image = lab, name, lab.image
        self.files = {}
        # Huge pages are the host's; systemd 262 counts a mount that the host refuses as failed.
        self.commands = ["update-ca-certificates >/dev/null 2>&1", "systemctl -q mask dev-hugepages.mount"]
        # cloud-init makes these, where it runs.
        self.commands.append("[ ! -e /usr/bin/ssh-keygen ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key")
        # What every machine of the lab has: the tool, the tests' CRI client, trust in the upstreams.
        self.put("/usr/local/bin/larder", source=lab.larder, mode=0o755)
        self.put("/usr/local/bin/cri", source=os.path.join(HERE, "cri.py"), mode=0o755)
        self.put("/usr/local/bin/cachefake", source=os.path.join(HERE, "cachefake.py"), mode=0o755)
        self.put("/usr/local/share/ca-certificates/upstream.crt", source=os.path.join(lab.directory, "ca.crt"))
        # A system call that a sandbox refuses ends its process here: it would go unseen else. See `refused`.
        for unit in glob.glob(os.path.join(HERE, "../../units/*.service")):
            self.put(f"/usr/lib/systemd/system/{os.path.basename(unit)}.d/50-kill.conf", KILL)
        self.seed("#cloud-config\n{}\n")

    # ---- before a boot
    def put(self, path, text=None, source=None, mode=0o644):
        """A file that is laid over the tree before the next boot."""
        self.files[path] = (text, source, mode)

    def seed(self, user_data, instance=None):
        """cloud-init's NoCloud seed; another instance is a new machine in cloud-init's eyes."""
        base = "/var/lib/cloud/seed/nocloud"
        self.put(f"{base}/user-data", user_data)
        self.put(f"{base}/meta-data", f"instance-id: {instance or 'i-' + self.name}\nlocal-hostname: {self.name}\n")

    def apply_at_boot(self, profile):
        """The main job: cloud-init brings the profile and runs `larder apply` once."""
        self.seed(user_data(profile))

    @contextlib.contextmanager
    def _tree(self):
        """What was put, as a tree of its own."""
        with tempfile.TemporaryDirectory(dir=self.lab.directory) as tree:
            for path, (text, source, mode) in self.files.items():
                target = tree + path
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                if source is not None:
                    shutil.copyfile(source, target)
                else:
                    with open(target, "w", encoding="utf-8") as file:
                        file.write(text)
                os.chmod(target, mode)
            os.chmod(tree, 0o755)
            yield tree
        self.files, self.commands = {}, []

    def lay(self):
        """What was put, over the tree of a machine that does not run."""
        script = 'cp -a "$1/." "$ROOT/"; shift; for c; do chroot "$ROOT" /bin/sh -ec "$c"; done'
        with self._tree() as tree:
            self.lab("mounted", self.name, self.image, "sh", "-ec", script, "_", tree, *self.commands)

    def boot(self, settled=True):
        """Boot, with what was put since the last boot; True when it settled in time."""
        with self._tree() as tree:
            arguments = ["boot", self.name, self.image, "--tree", tree]
            for command in self.commands:
                arguments += ["--chroot", command]
            self.lab(*arguments, *([] if settled else ["--unsettled"]))

    # ---- while it runs
    def sh(self, command, stdin=None, timeout=180):
        return self.lab.ask("exec", self.name, "sh", "-c", command, stdin=stdin, timeout=timeout)

    def out(self, command):
        """The output of a command, whatever its exit code."""
        return self.sh(command).out.strip()

    def start(self, command):
        """A command in the background; `finish` gives its result."""
        return subprocess.Popen(
            [*self.lab.command, "exec", self.name, "sh", "-c", command],
            env=self.lab.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def write(self, path, text):
        done = self.sh(f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text)
        if done.code != 0:
            raise OSError(f"write {path} on {self.name}: {done}")

    def larder(self, *arguments, timeout=300):
        return self.sh("larder " + shlex.join(arguments), timeout=timeout)

    def pull(self, *images):
        return self.sh("cri pull " + shlex.join(images))

    def container(self, name="kept"):
        """Start a container that sleeps, where the kubelet's are; the id of its process on the machine.

        A shutdown of the machine waits for it: see `remove_container`.
        """
        # Of the machine's own programs: no image. The host may have no cgroup controllers to hand down.
        done = self.sh(f"""
            root=/run/container-{name}; mkdir -p $root/usr $root/proc $root/dev $root/sys
            for part in bin sbin lib lib64; do ln -sfn usr/$part $root/$part; done
            ctr -n k8s.io run --detach --cpu-shares 0 --mount type=bind,src=/usr,dst=/usr,options=rbind:ro \
              --rootfs $root {name} /usr/bin/sleep infinity >&2 &&
            ctr -n k8s.io task ls | awk '$1 == "{name}" {{ print $2 }}'""")
        if done.code != 0 or not done.out.strip().isdigit():
            raise OSError(f"run a container on {self.name}: {done}")
        return int(done.out)

    def remove_container(self, name="kept"):
        done = self.sh(f"ctr -n k8s.io task rm --force {name} && ctr -n k8s.io container rm {name}")
        if done.code != 0:
            raise OSError(f"remove a container on {self.name}: {done}")

    def forget(self):
        """Remove every image from containerd, content and all."""
        done = self.sh("cri rmi $(ctr -n k8s.io images ls -q | grep -v @ | grep -v ^sha256:)")
        left = self.out("ctr -n k8s.io content ls -q 2>/dev/null")  # 1.7 warns of deprecations here
        if done.code != 0 or left:
            raise OSError(f"remove images on {self.name}: {done}, content left: {left!r}")

    def fake(self):
        """A process in this machine that plays caches; see fake.py."""
        made = fake.Fake(self.lab, self)
        self.lab.fakes.append(made)
        return made

    def blackhole(self, address):
        """Packets from here to an address of the network vanish: no answer of any kind, until `restore`."""
        # Sent to a station that is not there.
        done = self.sh(f"ip neigh replace {address} lladdr 02:00:00:00:00:ff nud permanent dev eth0")
        if done.code != 0:
            raise OSError(f"blackhole {address} on {self.name}: {done}")

    def restore(self, address):
        self.sh(f"ip neigh del {address} dev eth0; ip neigh flush {address}")

    def reboot(self):
        self.lab("reboot", self.name)

    def stop(self):
        self.lab("stop", self.name)

    def wait(self, command, seconds):
        """Poll until a command exits 0; its last result. Three machines share two cores: it is never a short time."""
        deadline = time.monotonic() + max(seconds, PATIENCE)
        while True:
            done = self.sh(command)
            if done.code == 0 or time.monotonic() > deadline:
                return done
            time.sleep(0.5)

    def show(self, unit, *properties):
        """Properties of a unit, as a dict."""
        lines = self.out(f"systemctl show {shlex.quote(unit)} -p {','.join(properties)}").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def snapshot(self, *paths):
        """What stands below paths, as snapshot.py says it: see `changed`."""
        with open(os.path.join(HERE, "snapshot.py"), encoding="utf-8") as script:
            done = self.sh("python3 - " + shlex.join(paths), stdin=script.read())
        return json.loads(done.out)

    def ours(self):
        """The content of every path on the machine that is there because of Larder."""
        return ours(self.snapshot("--content", "/etc"))

    def refused(self):
        """System calls of Larder's units that their sandboxes refused, as lines of the journal; None: it does not run."""
        done = self.sh("echo here; journalctl -q --no-pager -o cat | grep -iE 'status=31/SYS|SIGSYS|bad system call' | sort | uniq -c")
        lines = done.out.splitlines()
        return [line.strip() for line in lines[1:]] if lines[:1] == ["here"] else None

    def diagnose(self):
        """What a reader wants to see of a machine on which a check failed."""
        return self.out("""
            systemctl --failed --no-legend --no-pager; ip -br addr; ls /etc/larder/registry
            echo "== /root/apply.out"; cat /root/apply.out
            echo "== /run/larder/status.json, less what is ok"
            jq -c '.rows[] | select(.state != "ok")' /run/larder/status.json
            journalctl -b --no-pager -n 40 -o short-monotonic -t systemd -t larder -u larder.service -u cloud-final |
              cut -c1-200""")


def changed(before, after):
    """What differs between two snapshots: one line per path."""
    return [
        f"{'added' if path not in before else 'gone' if path not in after else 'changed'} {path}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def ours(paths):
    """Of paths below /etc, those that Larder makes or edits. Its profile is the operator's."""
    return {
        path: what
        for path, what in paths.items()
        if (re.search("larder|certs.d|docker-registry.service$", path) or path == "/etc/containerd/config.toml")
        and path != "/etc/larder/profile.yaml"
    }


def user_data(profile):
    indented = "".join(f"      {line}\n" if line else "\n" for line in profile.splitlines())
    return (
        "#cloud-config\n"
        "write_files:\n"
        "  - path: /etc/larder/profile.yaml\n"
        "    content: |\n"
        f"{indented}"
        "runcmd:\n"
        "  - [sh, -c, 'ip -4 -o addr show dev eth0 > /root/address.before']\n"
        "  - [sh, -c, 'larder apply > /root/apply.out 2>&1; echo $? > /root/apply.code']\n"
    )


def profile(address="10.0.20.10", upstreams=tuple(NAMES), cache=True, containerd=True, extra=""):
    """A node profile like the shipped example, in the parts that a scenario varies."""
    ports = {name: 5000 + 10 * index for index, name in enumerate(NAMES)}
    text = "version: 1\nupstreams:\n" + "".join(f"  {name}: {{ port: {ports[name]} }}\n" for name in upstreams)
    text += (
        f"network:\n  interface: eth0\n  addresses: [{address}/24]\n  gateway: 10.0.20.1\n"
        "  nameservers: { addresses: [10.0.20.1] }\n"
    )
    text += "cache: {}\n" if cache is True else ""
    text += "containerd: {}\n" if containerd is True else containerd or ""
    return text + extra
