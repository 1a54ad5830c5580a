"""A restart of containerd is a transaction, on every version, and running containers know nothing of it."""

from machine import changed
from report import exits, has, lacks

SECONDS = 600  # one machine after the other; containerd is given its time to come back

PROFILE = "version: 1\nupstreams:\n  docker.io: { port: 5000 }\ncontainerd: { caches: [10.0.20.12] }\n"

# A containerd that is started with another file as soon as its own has Larder's setting: `config dump` of that
# one sees nothing wrong.
ELSEWHERE = """[Service]
ExecStart=
ExecStart=/bin/sh -c 'if grep -q certs.d /etc/containerd/config.toml; \
then exec containerd --config /root/other.toml; else exec containerd; fi'
"""

# containerd starts, and has no CRI.
BROKEN = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["http://10.0.20.12:5000"]
"""

# CRI is well, and reads something else.
UNREAD = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/srv/other"
"""

# A container that only sleeps; its files are the machine's own.
CONTAINER = """
mkdir -p /srv/rootfs && cd /srv/rootfs && mkdir -p dev proc sys tmp etc run
for f in /usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*'); do mkdir -p .$(dirname $f) && cp -L $f .$f; done
cat > /srv/runc <<'X'
#!/bin/sh
# The machine of the test has no kernel keyrings, and no control over devices.
for word; do
  shift
  set -- "$@" "$word"
  [ "$word" != create ] || set -- "$@" --no-new-keyring
done
exec runc --rootless true "$@"
X
chmod +x /srv/runc
cat > /srv/spec.json <<'X'
{"ociVersion": "1.0.2", "root": {"path": "/srv/rootfs"},
 "process": {"user": {"uid": 0, "gid": 0}, "args": ["/usr/bin/sleep", "100000"], "cwd": "/", "env": ["PATH=/usr/bin"]},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
 "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "cgroupsPath": "/default/sleeper"}}
X
ctr run --detach --runc-binary /srv/runc --config /srv/spec.json sleeper
"""


def run(t):
    t.each_containerd(on)


def on(t, _, node, version):
    says_its_config_path = version.startswith("1.")
    node.boot()
    started = node.sh(CONTAINER)
    t.check("a container runs", started, exits(0))
    task = node.out("ctr task ls | awk '$1 == \"sleeper\" {print $2, $3}'")
    t.check("its task", task, has("RUNNING"))
    node.write("/etc/larder/profile.yaml", PROFILE)
    before = places(node)

    def rolled_back(what, *words):
        said = node.larder("apply")
        t.check(f"{what}: exit code", said, exits(1))
        t.check(f"{what}: what it says", said.out, has(*words, "everything is back as it was"))
        t.check(f"{what}: files after it", changed(before, places(node)), [])
        t.check(f"{what}: CRI after it", node.sh("ctr plugins ls id==cri | grep -q ok"), exits(0))
        t.check(f"{what}: the container's task", task_of(node), task)
        t.note(f"{what}: {said.seconds:.1f}s")

    elsewhere(node, BROKEN)
    rolled_back("CRI that does not come up", "CRI did not come up", "mirrors")
    elsewhere(node, UNREAD)
    read = ('config_path "/srv/other"',) if says_its_config_path else ()
    rolled_back("a containerd that reads something else", "does not read /etc/containerd/certs.d", *read)

    node.sh("rm -r /etc/systemd/system/containerd.service.d && systemctl daemon-reload")
    config = node.out("cat /etc/containerd/config.toml")
    node.write("/etc/containerd/config.toml", 'imports = ["/etc/containerd/gone.toml"]\n' + config + "\n")
    pid = node.out("systemctl show -P MainPID containerd")
    said = node.larder("apply")
    t.check("an import that is not there: exit code", said, exits(2))
    t.check("an import that is not there: what it says", said.out, has("config.toml:1", "gone.toml does not exist"))
    t.check("an import that is not there: containerd", node.out("systemctl show -P MainPID containerd"), pid)
    node.write("/etc/containerd/config.toml", config + "\n")

    said = node.larder("apply")
    t.check("a good configuration: exit code", said, exits(0))
    t.check("a good configuration: warnings", said.out, lacks("CRI was not up", "it was restarted"))
    t.check("a good configuration: a new containerd", node.out("systemctl show -P MainPID containerd") != pid)
    t.check("a good configuration: the container's task", task_of(node), task)
    t.check("nothing of the probe is left", node.out("ls /etc/containerd/certs.d"), "docker.io")
    t.note(f"apply with a restart: {said.seconds:.1f}s")
    again = node.larder("apply")
    t.check("a second apply: exit code", again, exits(0))
    t.check("a second apply: what it says", again.out, has("nothing to change"))
    t.note(f"apply that changes nothing: {again.seconds:.2f}s")

    # The file is right, and the containerd that runs was started with another.
    node.sh("cd /etc/containerd && mv config.toml right && containerd config default > config.toml"
            " && systemctl restart containerd && cp -p right config.toml && rm right")
    said = node.larder("apply")
    t.check("a containerd older than its file: exit code", said, exits(0))
    t.check("a containerd older than its file: what it says", said.out, has("nothing to change", "it was restarted"))
    t.check("a containerd older than its file: once is enough", node.larder("apply").out, lacks("it was restarted"))

    # Down before us: the change is not to blame, and goes through.
    left = node.sh("larder apply --profile -", stdin=PROFILE.partition("containerd")[0])
    t.check("containerd out of the profile: exit code", left, exits(0))
    t.check("containerd out of the profile: its file", node.out("cat /etc/containerd/config.toml"), config)
    t.check("containerd out of the profile: certs.d", node.sh("ls /etc/containerd/certs.d"), exits(2))
    elsewhere(node, BROKEN, "version")
    node.sh("systemctl restart containerd")
    said = node.larder("apply")
    t.check("CRI that was down before: exit code", said, exits(4))
    t.check("CRI that was down before: what it says", said.out, has("warning: containerd's CRI was not up before"))
    t.check("CRI that was down before: the setting", node.out("cat /etc/containerd/config.toml"), has("certs.d"))
    t.check("CRI that was down before: the container's task", task_of(node), task)


def elsewhere(node, config, when="certs.d"):
    unit = ELSEWHERE.replace("certs.d", when)
    node.write("/etc/systemd/system/containerd.service.d/elsewhere.conf", unit)
    node.write("/root/other.toml", config)
    node.sh("systemctl daemon-reload")


def task_of(node):
    return node.out("ctr task ls | awk '$1 == \"sleeper\" {print $2, $3}'")


def places(node):
    files = node.snapshot("--content", "/etc", "/usr/lib/systemd")
    passing = ("/etc/.pwd", "/etc/systemd/system/containerd")
    return {path: what for path, what in files.items() if not path.startswith(passing)}
