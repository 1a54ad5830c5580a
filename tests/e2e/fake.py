"""Caches that misbehave, for scenarios: cachefake.py at the gateway or inside a machine.

    fake = lab.fake()                                  at the gateway, or node.fake(): inside a machine (again after
                                                       its reboot: fake.start())
    cache = fake.door("10.0.20.21:5000", "https://10.0.20.1")   an address of the gateway's net is made for it;
                                                       no target: every request is 404
    cache.set("hang"); cache.set("status", 500, only="/blobs/"); cache.set("pass")      words: cachefake.py
    mark = fake.mark(); ...; fake.requests(mark)       [Request(door, method, path, host, agent, auth, status)]
    fake.record(8)                                     eight doors on loopback that answer 404
    lab.blackhole("10.0.20.21"); lab.restore(...)      packets to an address of the gateway's vanish, for everyone
    node.blackhole("10.0.20.10"); node.restore(...)    the same for any address, and this machine only
    lab.certificate("cache", "10.0.20.21", authority="other", client=False)             paths, see there

Options of `door`: tls=(certificate, key), client_ca=PATH, basic="USER:PASSWORD", bearer="USER:PASSWORD",
header=("NAME", "VALUE"). Inside a machine, paths are the machine's.
"""

import json
import os
import shlex
import subprocess
import time
from dataclasses import dataclass

import cachefake

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Request:
    door: str
    method: str
    path: str
    host: str
    agent: str
    auth: str
    status: int

    def __str__(self):
        return f"{self.door} {self.method} {self.path} {self.status}"


class Door:
    def __init__(self, fake, name):
        self.fake, self.name = fake, name
        self.address, _, port = name.rpartition(":")
        self.port = int(port)

    def set(self, *behaviour, only=None):
        self.fake.tell({"set": self.name, "behaviour": behaviour, "only": only})


class Fake:
    """One process with any number of doors. `stop` and `start` keep the doors, which then pass."""

    def __init__(self, lab, node=None):
        self.lab, self.node, self.opened, self.process = lab, node, [], None
        self.directory = "/run/cachefake" if node else os.path.join(lab.directory, f"fake{len(lab.fakes)}")
        self.start()

    def start(self):
        if self.node:
            self.node.sh(f"mkdir -p {self.directory}; systemctl reset-failed cachefake")
            done = self.node.sh(f"systemd-run --quiet --collect --unit=cachefake cachefake serve {self.directory}")
            if done.code != 0:
                raise OSError(f"start cachefake on {self.node.name}: {done}")
            ready = self.node.wait(f"test -S {self.directory}/control", 15).code == 0
        else:
            self.process = self.lab.upstream.daemon(
                "gw", "python3", os.path.join(HERE, "cachefake.py"), "serve", self.directory
            )
            deadline = time.monotonic() + 15
            while not (ready := os.path.exists(f"{self.directory}/control")) and time.monotonic() < deadline:
                time.sleep(0.05)
        if not ready:
            raise TimeoutError(f"start cachefake: no {self.directory}/control (see gateway.log, or the journal)")
        for command in self.opened:
            self.tell(command)

    def stop(self):
        """As when its process is killed: nothing listens."""
        if self.node:
            self.node.sh("systemctl stop cachefake")
            self.node.sh(f"rm -f {self.directory}/control")
        elif self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
            os.unlink(f"{self.directory}/control")

    def tell(self, command):
        if self.node:
            words = shlex.join(["cachefake", "tell", self.directory, json.dumps(command)])
            done = self.node.sh(words)
            if done.code != 0:
                raise OSError(f"tell cachefake on {self.node.name}: {done}")
            answer = json.loads(done.out)
        else:
            answer = cachefake.tell(self.directory, command)
        if "error" in answer:
            raise OSError(f"tell cachefake {json.dumps(command)}: {answer['error']}")
        return answer

    def door(self, listen, target=None, tls=None, client_ca=None, basic=None, bearer=None, header=None):
        host = listen.rpartition(":")[0]
        if not self.node and host.startswith("10.0.20."):
            self.lab.address(host)
        command = {"open": listen, "target": target, "basic": basic, "bearer": bearer, "header": header}
        if tls:
            command["tls"] = {"certificate": tls[0], "key": tls[1], "client_ca": client_ca}
        door = Door(self, self.tell(command)["door"])
        self.opened.append({**command, "open": door.name})
        return door

    def record(self, count, address="127.0.0.1"):
        """So many doors on free ports that have nothing, and keep a record."""
        return [self.door(f"{address}:0") for _ in range(count)]

    def _log(self):
        if self.node:
            return self.node.sh(f"cat {self.directory}/log").out
        with open(f"{self.directory}/log", encoding="utf-8") as log:
            return log.read()

    def mark(self):
        """A place in the log, for `requests`."""
        return len(self._log())

    def requests(self, since=0, door=None, what=None):
        """What was asked since a mark, in order: of one door, with `what` in the path."""
        entries = [json.loads(line) for line in self._log()[since:].splitlines()]
        found = []
        for entry in sorted(entries, key=lambda entry: entry["n"]):
            request = Request(**{key: entry[key] for key in Request.__dataclass_fields__})
            if (door is None or request.door == door.name) and (what is None or what in request.path):
                found.append(request)
        return found

    def close(self):
        if not self.node and self.process is not None:
            self.process.kill()
            self.process.wait()


def certificate(directory, name, *subjects, authority="ca", client=False):
    """NAME.crt and NAME.key in a directory, for DNS names and addresses; and the authority's certificate.

    `ca` is the authority that machines trust; any other name makes one that nobody does.
    """
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2".split()
    path = {end: os.path.join(directory, end) for end in (f"{name}.crt", f"{name}.key", f"{authority}.crt")}
    if not os.path.exists(path[f"{authority}.crt"]):
        files = ["-keyout", f"{authority}.key", "-out", f"{authority}.crt"]
        subprocess.run([*request, "-subj", f"/CN={authority}", *files], cwd=directory, check=True, capture_output=True)
    alternatives = [f"{'IP' if s.replace('.', '').isdigit() or ':' in s else 'DNS'}:{s}" for s in subjects]
    extensions = ["basicConstraints=CA:FALSE", "extendedKeyUsage=" + ("clientAuth" if client else "serverAuth")]
    extensions += ["subjectAltName=" + ",".join(alternatives)] if alternatives else []
    subprocess.run(
        [
            *[*request, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"],
            *["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"],
            *[word for extension in extensions for word in ("-addext", extension)],
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return tuple(path.values())
