"""Secrets are planted wherever a profile can hold one, and looked for wherever they must not be; and what somebody
changes by hand meanwhile is shown, kept, or put right."""

import json
import secrets
import shlex

from machine import changed
from report import at_least, exits, has, lacks

SECONDS = 420
CONFIG = "/etc/larder/registry/ghcr.io.yml"
TIMER = "/etc/systemd/system/timers.target.wants/larder-scrub@ghcr.io.timer"
NAMES = ("inline", "file", "helper", "credential", "header", "auth", "broken", "control")
PROFILE = """version: 1
upstreams:
  docker.io: {{ port: 5000, username: bot, password: {inline} }}
  ghcr.io: {{ port: 5010, username: bot, password: {{ file: /etc/larder/secrets/hub }} }}
  quay.io: {{ port: 5020, credential_helper: test }}
  registry.k8s.io: {{ port: 5030, username: bot, password: {{ credential: k8s }} }}
network:
  interface: eth0
  addresses: [10.0.20.10/24]
  gateway: 10.0.20.1
  nameservers: {{ addresses: [10.0.20.1] }}
cache: {{}}
containerd:
  mirrors:
    docker.io:
      - url: https://mirror.lab
        headers: {{ X-Token: {header} }}
  auth:
    private.lab: {{ username: u, password: {auth} }}
"""
# Looks for the secrets, one a line on standard input, in clear and as base64 has them.
SEARCH = r"""
import base64, glob, json, os, stat, subprocess, sys
secrets = [line.strip() for line in sys.stdin if line.strip()]
needles = {}
for secret in secrets:
    needles[secret.encode()] = secret
    for skip in range(3):
        text = base64.b64encode(secret.encode()[skip:]).rstrip(b"=")
        needles[text[: len(text) // 4 * 4 - 4]] = secret
def found(data):
    return sorted({secret for needle, secret in needles.items() if needle in data})
counts, hits = dict(files=0, private=0, processes=0, lines=0), []
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
    for name in files:
        path = os.path.join(folder, name)
        try:
            about = os.lstat(path)
            if not stat.S_ISREG(about.st_mode) or about.st_size > 64 << 20:
                continue
            # What was installed was there before there were secrets.
            if path.startswith("/usr/") and not path.startswith("/usr/local/"):
                continue
            with open(path, "rb") as file:
                seen = found(file.read())
        except OSError:
            continue
        counts["files"] += 1
        for secret in seen:
            if about.st_mode & 0o077:
                hits.append(f"{path} ({about.st_mode & 0o7777:o}): {secret}")
            else:
                counts["private"] += 1
for process in glob.glob("/proc/[0-9]*"):
    counts["processes"] += 1
    for what in ("cmdline", "environ"):
        try:
            with open(f"{process}/{what}", "rb") as file:
                seen = found(file.read())
            with open(f"{process}/cmdline", "rb") as file:
                command = file.read()[:80]
        except OSError:
            continue
        hits += [f"{process}/{what} of {command}: {secret}" for secret in seen]
journal = subprocess.run(["journalctl", "--no-pager", "-o", "export"], stdout=subprocess.PIPE).stdout
counts["lines"] = journal.count(b"\n")
hits += [f"the journal: {secret}" for secret in found(journal)]
print(json.dumps([counts, hits]))
"""


def run(t):
    lab = t.lab()
    node = lab.machine("node")
    node.boot()
    planted = {name: "Sx" + secrets.token_hex(16) for name in NAMES}
    plant(node, planted)
    said = node.larder("apply")
    t.check("apply", said.code in (0, 4), True)
    outputs = [said.out]
    hand_edits(t, node, outputs)
    told_to_end(t, node, outputs)
    commands(t, node, planted, outputs)
    search(t, node, planted, outputs)


def plant(node, planted):
    def private(path, text):
        node.sh(f"mkdir -p $(dirname {path}) && (umask 077; cat > {path})", stdin=text)

    private("/etc/larder/secrets/hub", planted["file"] + "\n")
    private("/etc/credstore/k8s", planted["credential"])
    private("/etc/larder/profile.yaml", PROFILE.format(**planted))
    # Whoever may run it learns what it says; the registries may.
    private("/etc/helper/secret", planted["helper"])
    node.write(
        "/usr/local/bin/docker-credential-test",
        '#!/bin/sh\nprintf \'{"ServerURL":"x","Username":"bot","Secret":"%s"}\' "$(cat /etc/helper/secret)"\n',
    )
    node.sh(
        "systemd-sysusers --inline 'u larder - \"\" /var/lib/larder'; chmod 755 /usr/local/bin/docker-credential-test;"
        " chown -R larder /etc/helper; chmod 700 /etc/helper"
    )


def hand_edits(t, node, outputs):
    before = node.snapshot("--content", "/etc")
    node.sh(f"sed -i s/:5010/:5011/ {CONFIG}; rm {TIMER}; chmod 666 /etc/larder/caches.json")
    status = node.larder("status")
    outputs.append(status.out)
    t.check("hand edits: status tells each, and since when", status.out, has(
        f"~ {CONFIG}: edited by hand since 20", f"~ {TIMER}: deleted by hand at 20",
        "~ /etc/larder/caches.json: mode changed by hand since 20", "from 0644 root to 0666 root"))
    t.check("hand edits: status shows the difference", status.out, has("-  addr: ", ":5010", "+  addr: ", ":5011"))
    t.note(f"status, with a plan to explain three edits: {status.seconds:.2f}s")
    words = {one["path"]: one["what"] for one in json.loads(node.out("larder status --output json; true"))["drift"]}
    t.check("hand edits: for programs", words, {
        CONFIG[1:]: "edited", TIMER[1:]: "gone", "etc/larder/caches.json": "access"})
    metrics = node.out("larder status --metrics")
    t.check("hand edits: metrics", metrics, has('larder_drift_files{what="edited"} 1', 'larder_drift_files{what="gone"} 1'))
    t.check("hand edits: another user is told why not", node.out(
        "setpriv --reuid=65534 --clear-groups larder status; true"), has("run it as root"))
    t.check("hand edits: plan", node.larder("plan"), exits(10))
    kept = node.larder("apply", "--keep", TIMER)
    outputs.append(kept.out)
    t.check("hand edits: apply keeps what was edited, under its name", kept.out, has(f"{CONFIG} is kept as", ".edited-by-hand.20"))
    t.check("hand edits: a file that is kept is left alone", kept.out, has(f"left alone: {TIMER}"))
    t.check("hand edits: its timer stays disabled", node.out(f"test -e {TIMER} || echo gone"), "gone")
    t.check("hand edits: plan after it", node.larder("plan"), exits(0))
    t.check("hand edits: status after it", node.larder("status").out, has(f"left alone: {TIMER}"))
    node.larder("apply", "--take", TIMER)
    t.check("hand edits: all is as before", changed(before, node.snapshot("--content", "/etc")), [])
    t.check("hand edits: a file that is none of larder's", node.larder("apply", "--keep", CONFIG + ".x"), exits(2))


def told_to_end(t, node, outputs):
    """Ended by a signal at whatever point: it says what became of it, and the next run finds nothing half done."""
    node.sh("sed 's/port: 5010/port: 5012/' /etc/larder/profile.yaml > /root/other.yaml; chmod 600 /root/other.yaml")
    codes = []
    # At its beginning, as soon as it changes things, a little later, and while it proves what it did.
    changes = "until grep -q unfinished /var/lib/larder/state/manifest.json; do kill -0 $pid || break; done"
    for number, moment in enumerate(("sleep 0.03", changes, f"{changes}; sleep 0.02", f"{changes}; sleep 0.05", "sleep 0.7")):
        signal = ("TERM", "INT", "HUP")[number % 3]
        delay = number + 1
        before = node.snapshot("--content", "/etc")
        said = node.sh(
            f"larder apply --profile /root/other.yaml > /root/said 2>&1 & pid=$!; {moment}; kill -{signal} $pid;"
            " wait $pid; code=$?; cat /root/said; exit $code"
        )
        outputs.append(said.out)
        codes.append(said.code)
        if said.code == 1:
            t.check(f"SIG{signal}, {delay}. moment: nothing is changed", changed(before, node.snapshot("--content", "/etc")), [])
            t.check(f"SIG{signal}, {delay}. moment: it says so", said.out, has(f"stopped by SIG{signal}"))
        node.larder("apply")
        t.check(f"SIG{signal}, {delay}. moment: the next run", node.larder("plan"), exits(0))
    t.check("ended by a signal: exit codes", [code for code in codes if code not in (0, 1, 4)], [])
    t.note(f"exit codes of runs ended by signals: {codes}")
    few = node.sh("systemd-run --quiet --pipe --wait -p TasksMax=1 larder apply")
    outputs.append(few.out)
    t.check("no second thread to be had: no death", few.code in (0, 4), True)
    t.check("no journal: no death", node.sh(
        "unshare --mount sh -c 'mount -t tmpfs none /run/systemd/journal && exec larder plan'"), exits(0))


def commands(t, node, planted, outputs):
    bad = PROFILE.format(**planted).replace("port: 5000", "port: 99999").replace(
        f"password: {planted['inline']}", f"password: [{planted['broken']}]")
    node.sh("(umask 077; cat > /root/bad.yaml)", stdin=bad)
    # One that fails on the way and is put back: containerd's own reader refuses what it is given.
    node.sh(
        "sed 's/username: bot/username: other/; s/username: u,/username: v,/' /etc/larder/profile.yaml > /root/fails.yaml;"
        " chmod 600 /root/fails.yaml; cp -a /etc/containerd/config.toml /root/config.toml;"
        " printf '\\n[debug]\\n  uid = \"root\"\\n' >> /etc/containerd/config.toml"
    )
    failed = node.larder("apply", "--profile", "/root/fails.yaml")
    node.sh("cp -a /root/config.toml /etc/containerd/config.toml; rm /root/config.toml")
    outputs.append(failed.out)
    t.check("an apply that is rolled back", failed, exits(1))
    t.check("an apply that is rolled back: it says so", failed.out, has("everything is back as it was"))
    for command in (
        "check", "check --output json", "check --profile /root/bad.yaml", "check --profile /root/bad.yaml --output json",
        "config", "config --output json", "plan", "plan --output json", "apply", "apply --output json",
        "apply --profile /root/bad.yaml", "verify", "verify --output json", "status", "status --output json",
        "status --metrics", "explain docker.io", "explain docker.io --output json", "explain private.lab",
        "gc ghcr.io", "scrub ghcr.io", "migrate", "schema", "watch", "tend",
    ):
        outputs.append(node.larder(*shlex.split(command)).out)


def search(t, node, planted, outputs):
    names = {secret: name for name, secret in planted.items()}
    text = "\n".join(outputs)
    t.check("secrets in outputs", [name for secret, name in names.items() if secret in text], [])
    everywhere = look(node, planted.values())
    counts, hits = everywhere
    t.check("secrets where others can see them", [hit.replace(hit.split(": ")[-1], names[hit.split(": ")[-1]]) for hit in hits], [])
    t.check("secrets in files for their owner alone: the search finds them", counts["private"], at_least(8))
    t.note(f"searched {len(outputs)} outputs ({text.count(chr(10))} lines), {counts}")
    # What others can see is found, wherever it is.
    control = planted["control"]
    node.write("/etc/seen", control)
    node.sh(f"logger {control}; systemd-run --quiet --unit control -E X={control} sleep 100; (exec -a {control} sleep 100 &) >/dev/null 2>&1")
    node.sh(f"sh -c 'sleep 100; : {control}' >/dev/null 2>&1 &")
    _, hits = look(node, [control])
    found = " ".join(hits)
    t.check("what others can see is found", found, has("/etc/seen", "/environ", "/cmdline", "the journal"))
    node.sh("rm /etc/seen; systemctl stop control")
    registries = node.out(
        "for pid in $(pgrep -x docker-registry || pgrep -f docker-registry); do tr '\\0' '\\n' < /proc/$pid/environ; done")
    t.check("the registries' own environment", registries, lacks("REGISTRY_PROXY_PASSWORD"))
    limits = node.out("for pid in $(pgrep -f docker-registry); do grep 'core file' /proc/$pid/limits; done | sort -u")
    t.check("no registry leaves a core", limits.split()[4:6], ["0", "0"])


def look(node, wanted):
    done = node.sh("python3 -c " + shlex.quote(SEARCH), stdin="\n".join(wanted))
    return json.loads(done.out.splitlines()[-1])
