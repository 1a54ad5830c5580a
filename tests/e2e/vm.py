"""A virtual machine under qemu's own emulation, for what a container cannot show: a kernel, a disk, a console, an ISO.

Its network is qemu's, closed: 10.0.20.0/24 with 10.0.20.1 at its other end, and nothing behind that. A forward from
this host's loopback is the only way in.
"""

import os
import socket
import subprocess
import time

from machine import Result, run

OPTIONS = (
    "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout=10"
).split()
# What a stock kernel boots with where there is no KVM.
KERNEL = "root=/dev/vda console=ttyS0 mitigations=off systemd.show_status=1"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def emulated(disk):
    """Arguments for qemu, Packer's too: pairs."""
    return [
        # What is emulated costs least without what newer ones have, and as one.
        ["-cpu", "Westmere"],
        ["-smp", "1"],
        ["-kernel", f"{disk}/vmlinuz"],
        ["-initrd", f"{disk}/initrd.img"],
        ["-append", KERNEL],
    ]


def key(folder):
    """A key pair; the path of its private half."""
    path = os.path.join(folder, "key")
    if not os.path.exists(path):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


class VM:
    """Boots a disk with a seed on an ISO; `address` is the one that it will have."""

    def __init__(self, folder, disk, image, address="10.0.20.10"):
        self.folder, self.disk, self.image, self.address = folder, disk, image, address
        self.console, self.key, self.process = os.path.join(folder, "console"), key(folder), None

    def seed(self, user_data, instance):
        place = os.path.join(self.folder, "seed")
        os.makedirs(place, exist_ok=True)
        for name, text in (("user-data", user_data), ("meta-data", f"instance-id: {instance}\nlocal-hostname: node\n")):
            with open(os.path.join(place, name), "w", encoding="utf-8") as file:
                file.write(text)
        command = ["xorriso", "-as", "mkisofs", "-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", f"{self.folder}/seed.iso", place]
        done = run(command)
        if done.code != 0:
            raise OSError(f"make a seed: {done}")

    def boot(self, *ports):
        """Start it; `forward[port]` of this host's loopback is its port."""
        self.forward = {port: free_port() for port in (22, *ports)}
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-{self.address}:{there}" for there, here in self.forward.items())
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", "1024", "-display", "none"]
        command += [word for pair in emulated(self.disk) for word in pair]
        command += ["-drive", f"file={self.image},if=virtio,format=qcow2", "-drive", f"file={self.folder}/seed.iso,if=virtio,format=raw,readonly=on"]
        command += ["-netdev", f"user,id=n,net=10.0.20.0/24,host=10.0.20.1,dns=10.0.20.3,dhcpstart=10.0.20.100,restrict=on{forwards}"]
        command += ["-device", "virtio-net,netdev=n", "-serial", f"file:{self.console}", "-monitor", "none"]
        with open(os.path.join(self.folder, "qemu.log"), "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def sh(self, command, timeout=180):
        return run(["ssh", *OPTIONS, "-i", self.key, "-p", str(self.forward[22]), "root@127.0.0.1", command], timeout=timeout)

    def out(self, command):
        return self.sh(command).out.strip()

    def settled(self, seconds=600):
        """Until cloud-init has finished; what it says."""
        deadline = time.monotonic() + seconds
        done = Result(255, "it did not boot")
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise OSError(f"qemu ended: {self.tail('qemu.log')}")
            done = self.sh("cloud-init status --wait --long", timeout=seconds)
            if done.code in (0, 1, 2):
                return done
            time.sleep(1)
        raise TimeoutError(f"no ssh to it within {seconds}s: {done}\n{self.tail('console')}")

    def tail(self, name, size=3000):
        with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
            return file.read()[-size:]

    def off(self):
        self.sh("systemctl poweroff")
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
