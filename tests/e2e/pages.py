"""The documentation as a test reads it: its blocks of code, what each is, and what its marks say.

A block is indented by four spaces after an empty line, or fenced. What it is shows from its text: commands, part of a
profile, a whole one, cloud-init's user-data, a message of Larder's. Commands run on a machine, each must exit with 0.
Where that does not fit, a comment before the block says so, for nobody but the test:

    <!-- test: exit 10 -->                  what the last command of the block exits with; `exit any`: whatever
    <!-- test: on client -->                the machine: node (a cache and its own client, the default) or client
    <!-- test: file /etc/larder/x.yaml -->  no command: what that file is to hold when the commands below it run
    <!-- test: output -->                   no command: what the commands of the block before it print; `…` is anything
    <!-- test: shown only: why -->          nothing is run; the reason is printed with the results
    <!-- test: run by NAME -->              nothing is run: the scenario or the test file of that name does
    <!-- test: from here on client -->      for every block that follows on the page; `offline`: no upstream answers

Several are separated by commas (a reason is the last). A comment at the end of a command, `# exit code N: why`, says it of that
command alone, and to the reader too.
"""

import glob
import os
import re
import subprocess
from dataclasses import dataclass, field

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "../.."))
TOP = ("version", "upstreams", "network", "cache", "containerd", "verify")
# Of these only the name is checked: they build, or boot machines of their own.
CHECKOUT = ("make", "cargo", "rustup", "git", "tests/", "packaging/", "target/")


@dataclass
class Block:
    page: str
    line: int
    text: str
    marks: dict = field(default_factory=dict)
    language: str = ""

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    @property
    def kind(self):
        """What its text is."""
        for mark in ("shown only", "run by", "file", "output"):
            if mark in self.marks:
                return mark
        lines = [line for line in self.text.splitlines() if line.strip()]
        if lines[0].startswith("#cloud-config"):
            return "user-data"
        if lines[0].startswith(("error: ", "warning: ")):
            return "message"
        tops = [line.split(":")[0] for line in lines if re.match(r"[a-z_]+:( |$)", line)]
        if tops and all(top in TOP for top in tops):
            return "profile" if "version" in tops else "fragment"
        plain = [re.sub(r"^\s*([A-Z_]+=\S+ )*", "", line) for line in lines]
        if all(line.startswith((*CHECKOUT, "#")) for line in plain):
            return "checkout"
        return "commands"

    def alternatives(self):
        """Its text, once for each of the lines that say one key in several ways."""
        lines = self.text.splitlines(keepends=True)
        keys = [re.match(r"\s+[a-z_]+:", line) for line in lines]
        keys = [key and key[0] for key in keys]
        # One after the other: the same key further down is another map's.
        again = {key for key, next_one in zip(keys, keys[1:]) if key and key == next_one}
        if not again:
            return [self.text]
        key = again.pop()
        return [
            "".join(line for other, line in enumerate(lines) if keys[other] != key or other == chosen)
            for chosen in range(len(lines))
            if keys[chosen] == key
        ]

    def commands(self):
        """Its commands: (line, text, exit code), None for any."""
        found, start, text = [], None, ""
        for number, line in enumerate(self.text.splitlines(), self.line):
            if not text and (not line.strip() or line.lstrip().startswith("#")):
                continue
            start = start if text else number
            text += line + "\n"
            # A command is whole where the shell says so.
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
            if done.returncode == 0 and not done.stderr and not text.endswith("\\\n"):
                said = re.search(r"# exit code (\d+)(:.*)?\s*$", text)
                found.append([start, text.rstrip("\n"), int(said[1]) if said else 0])
                text = ""
        if text:
            raise ValueError(f"{self.page}:{start}: no whole command: {text}")
        if found and "exit" in self.marks:
            found[-1][2] = None if self.marks["exit"] == "any" else int(self.marks["exit"])
        return [tuple(one) for one in found]


@dataclass
class Page:
    path: str
    text: str
    blocks: list
    # Its text without blocks, by line: (number, text).
    prose: list

    def spans(self):
        """What stands in backticks: (line, text)."""
        return [(number, span) for number, line in self.prose for span in re.findall(r"`([^`]+)`", line)]

    def anchors(self):
        found = {}
        for _, line in self.prose:
            if heading := re.match(r"#+ (.*)", line):
                name = re.sub(r"[^\w\- ]", "", heading[1].strip().lower()).replace(" ", "-")
                found[name] = found.get(name, -1) + 1
        return {name if not n else f"{name}-{n}" for name, count in found.items() for n in range(count + 1)}


def marks(text):
    """`exit 10, on client` as a dict."""
    found = {}
    while text := text.strip(" ,"):
        for name in ("shown only: ", "run by ", "file ", "exit ", "on ", "output", "offline"):
            if text.startswith(name):
                rest = text[len(name) :]
                value, text = (rest, "") if name == "shown only: " else (rest.partition(",")[::2])
                found[name.strip(": ")] = value.strip()
                break
        else:
            raise ValueError(f"no such mark: {text}")
    return found


def parse(path, text):
    blocks, prose = [], []
    lines = text.splitlines()
    mark, standing, at, after_blank = {}, {}, 0, True
    while at < len(lines):
        line = lines[at]
        if said := re.fullmatch(r"<!-- test: (.*?) -->", line.strip()):
            if (rest := said[1]).startswith("from here "):
                standing = marks(rest.removeprefix("from here "))
            else:
                mark = marks(rest)
            at, after_blank = at + 1, True
            continue
        fence = re.match(r"( *)(```+)(\w*)", line)
        if fence:
            end = next(n for n in range(at + 1, len(lines) + 1) if n == len(lines) or lines[n].strip() == fence[2])
            body, first, language, at = lines[at + 1 : end], at + 2, fence[3], end + 1
            body = [each.removeprefix(fence[1]) for each in body]
        elif after_blank and line.startswith("    ") and line.strip():
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            body, first, language, at = [each[4:] for each in lines[at:end]], at + 1, "", end
        else:
            prose.append((at + 1, line))
            if line.strip():
                mark = {} if not line.startswith("<!--") else mark
            after_blank, at = not line.strip(), at + 1
            continue
        blocks.append(Block(path, first, "\n".join(body).rstrip() + "\n", {**standing, **mark}, language))
        mark, after_blank = {}, True
    return Page(path, text, blocks, prose)


def pages():
    """README.md, CHANGELOG.md and all of docs/, in the order in which they are read."""
    paths = ["README.md", "CHANGELOG.md", *sorted(glob.glob("docs/**/*.md", root_dir=ROOT, recursive=True))]
    found = []
    for path in paths:
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            found.append(parse(path, file.read()))
    return found
