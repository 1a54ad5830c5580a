"""Whether two root trees make the same machine."""

import os
import re
import stat
import tomllib
from pathlib import Path

# Larder's own bookkeeping: the manifest and what it set aside, and what its watchdog has to know.
ONLY_LARDERS = ("var/lib/larder/state", "etc/larder/caches.json", "etc/larder/watch.json")
# Tools leave these behind, or write the day's date into them.
NOT_COMPARED = ("etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-")
# Larder computes the instants, others write them down: distinct ones are as good as others.
INSTANT = re.compile(r"^OnCalendar=.+$", re.MULTILINE)


def differences(larder: Path, other: Path) -> list[str]:
    """Every path that is not the same in both trees, `path: wanted …, got …`; Larder's tree is the wanted one."""
    wanted, got = read(larder), read(other)
    lines = []
    for path in sorted(wanted.keys() | got.keys()):
        if wanted.get(path) != got.get(path):
            lines.append(f"{path}: wanted {show(wanted.get(path))}, got {show(got.get(path))}")
    for tree, entries in ((larder, wanted), (other, got)):
        if twice := shared_instants(tree, entries):
            lines.append(f"{tree.name}: wanted an instant for each timer, got {', '.join(twice)} more than once")
    return lines


def read(root: Path) -> dict[str, tuple]:
    """Each path's type, mode, owner and meaning."""
    entries = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            file = Path(folder, name)
            path = str(file.relative_to(root))
            if path in NOT_COMPARED or path.startswith(ONLY_LARDERS):
                continue
            status = file.lstat()
            entries[path] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, meaning(file, status))
    return entries


def meaning(file: Path, status: os.stat_result):
    """What a reader of the file makes of it."""
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(file)
    # The programs are one file in all trees, and too large to read.
    if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 20:
        return None
    text = file.read_text()
    if file.suffix == ".toml":
        return tomllib.loads(text)
    if is_timer(str(file)):
        text = INSTANT.sub("OnCalendar=(an instant)", text)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def is_timer(path: str) -> bool:
    return ".timer.d/" in path


def shared_instants(root: Path, entries: dict[str, tuple]) -> list[str]:
    seen, twice = set(), []
    for path in filter(is_timer, entries):
        for instant in INSTANT.findall((root / path).read_text()):
            (twice.append if instant in seen else seen.add)(instant)
    return twice


def show(entry: tuple | None) -> str:
    if entry is None:
        return "nothing"
    mode, uid, gid, content = entry
    return f"{mode} {uid}:{gid}" + ("" if content is None else f" {content!r}")
