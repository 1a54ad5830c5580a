"""What the packages are: clean in the eyes of lintian and rpmlint, the same bytes wherever they are built, signed by a
key that is given, and with pages and completions that real readers and shells take. On this host; nothing is booted."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile

import packages
from machine import run as ask
from report import exits, has, lacks

LINTIAN = "lintian --allow-root --fail-on error,warning,info,pedantic --pedantic --display-info --tag-display-limit 0"
# What each shell offers after these letters.
SHELLS = {
    "bash": 'source usr/share/bash-completion/completions/larder; COMP_WORDS=(larder ver) COMP_CWORD=1; _larder larder ver larder; echo "${COMPREPLY[@]}"',
    "fish": "source usr/share/fish/vendor_completions.d/larder.fish; complete -C 'larder ver'",
    # Its completion works in its line editor alone.
    "zsh": "autoload -Uz compinit; compinit -D; fpath=(usr/share/zsh/vendor-completions $fpath); autoload -Uz _larder; autoload +X _larder; functions _larder",
}
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "USER": "somebody"}


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def run(t):
    folder, version = packages.build(t.larder), packages.version()
    deb, rpm = os.path.join(folder, packages.deb(version)), os.path.join(folder, packages.rpm(version))
    with tempfile.TemporaryDirectory() as work:
        lint(t, deb, rpm)
        tree = os.path.join(work, "tree")
        ask(["dpkg-deb", "--extract", deb, tree])
        pages(t, tree)
        units(t, tree)
        for shell, script in SHELLS.items():
            done = subprocess.run([shell, "-c", script], cwd=tree, capture_output=True, text=True, check=False)
            t.check(f"{shell}: what it completes", done.stdout, has("verify"))
            t.check(f"{shell}: what it says against it", done.stderr, "")
        contents(t, deb, rpm)
        bill(t, os.path.join(folder, f"larder_{version}.cdx.json"), version)
        again(t, folder, work, version)
        sign(t, folder, work, version)
    sizes(t, folder, version, t.larder)


def lint(t, deb, rpm):
    found = ask([*LINTIAN.split(), deb])
    t.check("lintian", (found.code, found.out.strip()), (0, ""))
    found = ask(["rpmlint", "-c", os.path.join(packages.TOP, "packaging/rpmlint.toml"), rpm])
    t.check("rpmlint", found.out, has("0 errors, 0 warnings"))


def pages(t, tree):
    for page in ("man8/larder.8.gz", "man5/larder-profile.5.gz"):
        path = os.path.join(tree, "usr/share/man", page)
        read = subprocess.run(
            ["man", "--warnings", "-l", path], env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        t.check(f"{page}: what man says against it", (read.returncode, read.stderr), (0, ""))
        t.check(f"{page}: sections", read.stdout, has("NAME", "DESCRIPTION", "SEE ALSO"))
        t.check(f"{page}: mandoc -T lint", ask(["mandoc", "-T", "lint", "-W", "warning", path]).out, "")
    page = ask(["man", "-l", os.path.join(tree, "usr/share/man/man8/larder.8.gz")]).out
    helped = ask([t.larder, "--help"]).out
    commands = re.findall(r"^  ([a-z]+) ", helped, flags=re.M)
    missing = [one for one in commands if one != "help" and not re.search(rf"^ +larder {one}\b", page, flags=re.M)]
    t.check("commands that larder(8) has not", missing, [])


def units(t, tree):
    """By the presets."""
    folder = os.path.join(tree, "usr/lib/systemd/system")
    preset = sorted(name for name in os.listdir(folder) if "@" not in name)
    enabled = []
    for name in preset:
        done = ask(["systemctl", f"--root={tree}", "preset", name])
        if done.code != 0:
            t.note(f"preset {name}: {done}")
    for where, _, links in os.walk(os.path.join(tree, "etc/systemd/system")):
        enabled += [link for link in links if where.endswith(".wants")]
    t.check("units that the preset enables", sorted(enabled), ["larder.service"])


def contents(t, deb, rpm):
    listed = ask(["dpkg-deb", "--contents", deb]).out
    t.check("owners in the .deb", sorted({line.split()[1] for line in listed.splitlines()}), ["root/root"])
    t.check("conffiles", ask(["dpkg-deb", "--info", deb, "conffiles"]).out.split(), [f"/{packages.CONFIG}"])
    config = ask(["rpm", "-qp", "--configfiles", rpm]).out.split()
    t.check("configuration in the .rpm", config, [f"/{packages.CONFIG}"])
    wanted = ask(["dpkg-deb", "--field", deb, "Recommends"]).out
    t.check("what the .deb recommends", wanted, has("docker-registry", "containerd"))
    t.check("what the .rpm recommends", ask(["rpm", "-qp", "--recommends", rpm]).out, has("containerd", "registry"))
    if not t.larder.endswith("/release/larder"):
        t.skip("places of this machine in the program", "it is not packaging/compile's")
        return
    with open(t.larder, "rb") as file:
        program = file.read()
    here = [place for place in (packages.TOP, os.path.expanduser("~/.cargo")) if place.encode() in program]
    t.check("places of this machine in the program", here if b"/rustc/" in program else "no places at all", [])


def bill(t, path, version):
    with open(path, encoding="utf-8") as file:
        bom = json.load(file)
    t.check("format of the bill", (bom["bomFormat"], bom["specVersion"]), ("CycloneDX", "1.5"))
    t.check("what it is of", bom["metadata"]["component"]["bom-ref"], f"larder@{version}")
    with open(os.path.join(packages.TOP, "Cargo.lock"), encoding="utf-8") as file:
        locked = file.read()
    wrong = [one["name"] for one in bom["components"] if f'"{one["hashes"][0]["content"]}"' not in locked]
    t.check("crates with another checksum than Cargo.lock's", wrong, [])
    named = {one["name"] for one in bom["components"]}
    t.check("crates that are linked", {"ring", "rustls", "clap", "serde"} - named, set())
    t.check("crates that only test", {"proptest", "jsonschema", "rcgen", "clap_mangen"} & named, set())
    refs = {one["bom-ref"] for one in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    t.check("references that lead nowhere", [r for d in bom["dependencies"] for r in d["dependsOn"] if r not in refs], [])


def again(t, folder, work, version):
    """Another folder, user, umask, time zone and language."""
    place = os.path.join(work, "a", "longer place", "larder")
    shutil.copytree(packages.TOP, place, symlinks=True, ignore=shutil.ignore_patterns("target", ".git"))
    larder = os.path.join(work, "larder")
    shutil.copyfile(t.larder, larder)
    parts = os.path.join(work, "parts")
    shutil.copytree(os.path.join(folder, "parts"), parts)
    ask(["chown", "-R", "12345:12345", work])
    os.chmod(work, 0o755)
    # The commit's, which may be another one's by now.
    epoch = ask(["rpm", "-qp", "--nosignature", "--queryformat", "%{BUILDTIME}", os.path.join(folder, packages.rpm(version))]).out
    built = os.path.join(work, "built")
    command = f"umask 0077; exec packaging/build --larder '{larder}' --parts '{parts}' --out '{built}'"
    done = subprocess.run(
        ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "sh", "-c", command],
        cwd=place, env={"PATH": os.environ["PATH"], **ELSEWHERE, "HOME": work, "SOURCE_DATE_EPOCH": epoch},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if not t.check("a second build", (done.returncode, done.stdout if done.returncode else ""), (0, "")):
        return
    for name in (packages.deb(version), packages.rpm(version), f"larder_{version}.cdx.json"):
        t.check(f"{name}: built twice", sha256(os.path.join(built, name)), sha256(os.path.join(folder, name)))


def sign(t, folder, work, version):
    """With a key that is thrown away."""
    place, keys = os.path.join(work, "signed"), os.path.join(work, "keys")
    os.makedirs(place)
    os.mkdir(keys, 0o700)
    names = (packages.deb(version), packages.rpm(version), f"larder_{version}.cdx.json")
    for name in names:
        shutil.copyfile(os.path.join(folder, name), os.path.join(place, name))
    with open(os.path.join(place, "SHA256SUMS"), "w", encoding="utf-8") as file:
        file.writelines(f"{sha256(os.path.join(place, name))}  {name}\n" for name in names)
    env = {**os.environ, "GNUPGHOME": keys}
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    ask([*gpg, "--quick-generate-key", "Somebody <somebody@example.org>", "rsa2048", "sign", "never"], env=env)
    key = os.path.join(work, "secret.asc")
    with open(key, "w", encoding="utf-8") as file:
        file.write(ask([*gpg, "--armor", "--export-secret-keys"], env=env).out)
    repository = os.path.join(work, "repository")
    command = [os.path.join(packages.TOP, "packaging/sign"), "--key", key, "--repository", repository, place]
    t.check("sign", ask(command), exits(0))
    checked = ask(["gpg", "--verify", os.path.join(place, "SHA256SUMS.asc"), os.path.join(place, "SHA256SUMS")], env=env)
    t.check("signature of SHA256SUMS", checked, exits(0))
    sums = ask(["sh", "-c", f"cd '{place}' && sha256sum --check --quiet SHA256SUMS"])
    t.check("SHA256SUMS", (sums.code, sums.out), (0, ""))
    base = os.path.join(work, "rpmdb")
    ask(["rpm", "--dbpath", base, "--import", os.path.join(place, "larder.asc")])
    checked = ask(["rpm", "--dbpath", base, "--checksig", os.path.join(place, packages.rpm(version))])
    t.check("signature of the .rpm", checked.out, has("digests signatures OK"))
    apt(t, repository, work)
    for name in os.listdir(repository):
        if name.startswith("Packages"):
            os.remove(os.path.join(repository, name))
    with open(os.path.join(repository, "Packages"), "w", encoding="utf-8") as file:
        file.write(ask(["dpkg-scanpackages", repository]).out.replace("Section: admin", "Section: changed"))
    apt(t, repository, work, tampered=True)


def apt(t, repository, work, tampered=False):
    """What apt makes of the repository, in folders of its own."""
    place = os.path.join(work, "apt")
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        os.makedirs(os.path.join(place, folder))
    with open(os.path.join(place, "sources.list"), "w", encoding="utf-8") as file:
        file.write(f"deb [signed-by={repository}/larder.asc arch=amd64] file:{repository} ./\n")
    with open(os.path.join(place, "status"), "w", encoding="utf-8"):
        pass
    settings = {
        "Dir::Etc::SourceList": f"{place}/sources.list", "Dir::Etc::SourceParts": "-", "Dir::State": place,
        "Dir::State::Status": f"{place}/status", "Dir::Cache": f"{place}/cache", "APT::Sandbox::User": "root",
        "Dir::Etc::Preferences": "-", "Dir::Etc::PreferencesParts": "-",
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    done = ask(["apt-get", *options, "update"])
    if tampered:
        found = ask(["apt-cache", *options, "policy", "larder"]).out
        t.check("what apt takes of an index that was changed after it was signed", found, lacks(packages.version()))
        return
    t.check("apt-get update", done, exits(0))
    t.check("what it says of signatures", done.out, lacks("W:", "E:"))
    t.check("apt-cache policy", ask(["apt-cache", *options, "policy", "larder"]).out, has(packages.version()))


def sizes(t, folder, version, larder):
    installed = ask(["dpkg-deb", "--field", os.path.join(folder, packages.deb(version)), "Installed-Size"]).out.strip()
    for what, size in (
        (packages.deb(version), os.path.getsize(os.path.join(folder, packages.deb(version)))),
        (packages.rpm(version), os.path.getsize(os.path.join(folder, packages.rpm(version)))),
        ("the program", os.path.getsize(larder)),
        ("installed", int(installed) * 1024),
    ):
        t.note(f"{what:32} {size / 1024:8.0f} KiB")
