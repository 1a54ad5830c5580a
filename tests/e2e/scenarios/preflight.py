"""What an upstream has against us is told apart, by `apply` and `verify`, where the cache before it says 404 or 500.

One machine with real registries, upstreams that fail each in its own way, and an authority that is trusted for one of
them only.
"""

import json
import os

from machine import CACHE
from report import exits, has, lacks
from scenarios.common import repository

BINARY = os.path.join(CACHE, "bin/registry")
PASSWORD = "pa55w0rd-of-nobody"
REPOSITORY = repository("docker.io")
# What the row says, and why.
WANTED = {
    "good.example": ("ok", None, "200"),
    "wrong.example": ("down", "credentials", "its token server refuses the credentials of `bot`"),
    "basic.example": ("down", "credentials", "it refuses the credentials of `bot`"),
    "forbidden.example": ("warned", "forbidden", "403"),
    "absent.example": ("warned", "not-found", f"404: it has no repository {REPOSITORY}"),
    "untagged.example": ("ok", None, f"404: it answers, and has no {REPOSITORY}:1"),
    "limited.example": ("warned", "rate-limit", "0 of 100 pulls left, asks to wait 30s"),
    "broken.example": ("warned", "server-error", "503"),
    "nowhere.example": ("warned", "dns", "DNS: registry.nowhere.example is not found"),
    "refused.example": ("warned", "refused", "refuses the connection"),
    "silent.example": ("warned", "timeout", "no connection to 10.0.20.51"),
    "unknown.example": ("warned", "tls-authority", "set the upstream's `ca`"),
    "misnamed.example": ("warned", "tls-name", "not for 10.0.20.53"),
    "private.example": ("ok", None, "200"),
    "private3.example": ("ok", None, "200"),
    "both.example": ("ok", None, "200"),
    "both3.example": ("ok", None, "200"),
}


def run(t):
    lab = t.lab()
    lab.upstream.push((REPOSITORY, "1", 1, 100_000))
    node, fake = lab.machine("node"), lab.fake()
    target = "https://10.0.20.1"
    # A certificate comes with its authority's.
    *private, authority = lab.certificate("private", "10.0.20.52", authority="other")
    *misnamed, _ = lab.certificate("misnamed", "somebody.example", authority="ca")
    fake.door("10.0.20.41:80", target, bearer="bot:right")
    fake.door("10.0.20.42:80", target, basic="bot:right")
    door = fake.door("10.0.20.43:80", target)
    door.set("status", 403, only="/v2/.")
    fake.door("10.0.20.44:80").set("status", 404, only="/v2/.")
    fake.door("10.0.20.45:80").set(
        "status", 429, "Retry-After", "30", "RateLimit-Limit", "100;w=21600", "RateLimit-Remaining", "0;w=21600"
    )
    fake.door("10.0.20.46:80").set("status", 503)
    fake.door("10.0.20.47:80").set("refuse")
    fake.door("10.0.20.48:80")
    fake.door("10.0.20.51:80")
    lab.blackhole("10.0.20.51")
    fake.door("10.0.20.52:443", target, tls=tuple(private))
    fake.door("10.0.20.53:443", target, tls=tuple(misnamed))

    remotes = {
        "good.example": (target, ""),
        "wrong.example": ("http://10.0.20.41", "bot"),
        "basic.example": ("http://10.0.20.42", "bot"),
        "forbidden.example": ("http://10.0.20.43", ""),
        "absent.example": ("http://10.0.20.44", ""),
        "untagged.example": ("http://10.0.20.48", ""),
        "limited.example": ("http://10.0.20.45", ""),
        "broken.example": ("http://10.0.20.46", ""),
        "nowhere.example": ("https://registry.nowhere.example", ""),
        "refused.example": ("http://10.0.20.47", ""),
        "silent.example": ("http://10.0.20.51", ""),
        "unknown.example": ("https://10.0.20.52", ""),
        "misnamed.example": ("https://10.0.20.53", ""),
        "private.example": ("https://10.0.20.52", "ca"),
        "private3.example": ("https://10.0.20.52", "ca"),
        "both.example": (target, "ca"),
        "both3.example": (target, "ca"),
    }
    three = os.path.isfile(BINARY)
    if three:
        node.put("/usr/local/lib/registry-3", source=BINARY, mode=0o755)
        for name in ("private3.example", "both3.example"):
            node.put(
                f"/etc/systemd/system/larder-registry@{name}.service.d/90-three.conf",
                "[Service]\nExecStart=\nExecStart=/usr/local/lib/registry-3 serve /etc/larder/registry/%i.yml\n",
            )
    else:
        t.skip("a `ca` with Distribution 3", f"no {BINARY}: `make deps` could not build it")
    lines = ["version: 1", "upstreams:"]
    for index, (name, (remote, more)) in enumerate(remotes.items()):
        port = 5000 + 10 * index
        more = {
            "bot": ", username: bot, password: { file: /etc/larder/secrets/bot }",
            "ca": ", ca: /etc/ssl/private-ca.pem",
            "": "",
        }[more]
        lines.append(f"  {name}: {{ port: {port}, remote: {remote}, probe: '{REPOSITORY}:1'{more} }}")
    lines += ["cache: { listen: 127.0.0.1 }", "verify: { timeout: 25s }", ""]
    node.put("/etc/larder/profile.yaml", "\n".join(lines))
    node.put("/etc/larder/secrets/bot", PASSWORD + "\n", mode=0o600)
    node.put("/etc/ssl/private-ca.pem", source=authority)
    node.boot()

    told = node.larder("apply")
    t.check("apply", told, exits(4))
    done = node.larder("verify", "--output", "json")
    rows = {row["subject"]: row for row in json.loads(done.out)["rows"] if row["check"] == "preflight"}
    for name, (state, cause, text) in WANTED.items():
        row = rows[name]
        t.check(f"{name}: state and cause", (row["state"], row.get("cause")), (state, cause))
        t.check(f"{name}: what the report says", row["got"], has(text))
        if state != "ok":
            t.check(f"{name}: the table of `apply`", told.out, has(row["got"]))
    limited = {key: rows["limited.example"].get(key) for key in ("remaining", "limit", "retry_after")}
    t.check("the allowance in JSON", limited, {"remaining": 0, "limit": 100, "retry_after": 30})
    required = node.sh(
        "sed 's/timeout: 25s/timeout: 25s, upstreams: require/' /etc/larder/profile.yaml > /root/strict.yaml;"
        "larder verify --profile /root/strict.yaml --output json"
    )
    strict = {row["subject"]: row["state"] for row in json.loads(required.out)["rows"] if row["check"] == "preflight"}
    t.check("`upstreams: require`", strict, {name: "ok" if want[0] == "ok" else "down" for name, want in WANTED.items()})

    # What the real registries make of a `ca`.
    through = {row["subject"]: row["state"] for row in json.loads(done.out)["rows"] if row["check"] == "upstream"}
    trusting = [name for name in ("private.example", "both.example", "private3.example", "both3.example")]
    if not three:
        trusting = trusting[:2]
    for name in trusting:
        t.check(f"{name}: through its registry", through[name], "ok")
    said = node.out("journalctl -q -o cat -u larder-registry@unknown.example.service | grep 'does not answer'")
    t.check("the unit of an upstream whose authority nobody trusts", said, has("set the upstream's `ca`"))
    leaked = node.out(f"journalctl -q | grep -c {PASSWORD}; cat /run/larder/status.json | grep -c {PASSWORD}")
    t.check("the password in the journal and in the report", leaked, "0\n0")
    t.check("and in what was printed", told.out + done.out + required.out, lacks(PASSWORD))

    # A renewed authority.
    again = node.larder("apply")
    t.check("a second apply", again.out, has("nothing to change"))
    pids = {name: node.show(f"larder-registry@{name}", "MainPID") for name in ("private.example", "good.example")}
    node.sh("awk '1; /END CERT/ { exit }' /etc/ssl/certs/ca-certificates.crt >> /etc/ssl/private-ca.pem")
    renewed = node.larder("apply")
    t.check("apply after its authority is renewed", renewed.out, has("0 created, 4 changed, 0 removed"))
    after = {name: node.show(f"larder-registry@{name}", "MainPID") for name in pids}
    t.check("the registry that trusts it is restarted", after["private.example"] != pids["private.example"])
    t.check("another is not", after["good.example"], pids["good.example"])
