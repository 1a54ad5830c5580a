"""An operator at the gateway, by ssh to a machine whose flavour has sshd."""

import os
import select
import subprocess
import time

from machine import image

OPTIONS = (
    "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes "
    "-o ConnectTimeout=10 -i /mnt/operator"
).split()


def admit(lab, node):
    """Before its boot: the operator's key is the machine's."""
    key = os.path.join(lab.directory, "operator")
    if not os.path.exists(key):
        made = lab.ask("gwroot", client(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/mnt/operator")
        if made.code != 0:
            raise OSError(f"make a key: {made}")
    with open(key + ".pub", encoding="utf-8") as file:
        node.put("/root/.ssh/authorized_keys", file.read(), mode=0o600)
    node.commands.append("chmod 700 /root/.ssh; systemctl -q enable ssh")


def client():
    """An image with `ssh`: a server is there without it."""
    return image("bookworm", "networkd")


def command(lab, address, *words):
    return [*lab.command, "gwroot", client(), "ssh", *OPTIONS, f"root@{address}", *words]


class Session:
    """One that stays open: what is typed comes back, as long as it is alive."""

    def __init__(self, lab, address):
        self.process = subprocess.Popen(
            command(lab, address, "cat"),
            env=lab.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.count = 0
        if not self.alive(20):
            raise OSError(f"no ssh session with {address}")

    def alive(self, seconds):
        """Whether it answers within that time."""
        self.count += 1
        wanted, got = f"line {self.count}\n".encode(), b""
        try:
            self.process.stdin.write(wanted)
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        deadline = time.monotonic() + seconds
        while wanted not in got:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not part:
                return False
            got += part
        return True

    def close(self):
        self.process.kill()
        self.process.wait()
