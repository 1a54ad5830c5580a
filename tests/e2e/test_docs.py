"""What README.md, CHANGELOG.md and docs/ name is there, and their profiles pass `larder check`. The scenario `docs` runs
their commands on machines.

LARDER names the binary; by default it is the debug one of this tree, which `cargo test` builds.
"""

import functools
import glob
import json
import os
import re
import subprocess
import tempfile
import unittest

import pages

LARDER = os.environ.get("LARDER") or os.path.join(
    os.environ.get("CARGO_TARGET_DIR") or os.path.join(pages.ROOT, "target"), "debug/larder"
)
BASE = "version: 1\nupstreams: { docker.io: { port: 5000 } }\ncache: {}\ncontainerd: {}\n"
PAGES = pages.pages()
# Flags of other programs that a page names alone.
OTHERS = {"--no-block", "--cgroups", "--include", "--jobs", "--list", "--larder", "--update", "--restart"}
# Made while something runs, or by other programs.
TRANSIENT = {"larder-network-guard.timer", "larder-network-guard.service"}
# A name is code, of which an upstream, an interface, a file or a version is a part.
PLACEHOLDER = re.compile(r"HOST|IF|NAME|FILE|DIR|UNIT|PREFIX|\{[^}]*\}|\*|<[^>]*>")


def larder(*arguments, stdin=None):
    return subprocess.run([LARDER, *arguments], input=stdin, text=True, capture_output=True, check=False, timeout=60)


def read(path):
    with open(os.path.join(pages.ROOT, path), encoding="utf-8", errors="replace") as file:
        return file.read()


@functools.cache
def sources():
    """What the project is made of, less its pages."""
    found = []
    for folder in ("src", "units", "templates", "packaging"):
        for path in sorted(glob.glob(f"{folder}/**/*", root_dir=pages.ROOT, recursive=True)):
            if os.path.isfile(os.path.join(pages.ROOT, path)):
                found.append(read(path))
    return "\n".join(found)


def spans(pattern):
    """(place, what matched) for each match in what stands in backticks and in blocks that run."""
    for page in PAGES:
        if page.path == "CHANGELOG.md":  # it also tells of what is gone
            continue
        for line, text in page.spans():
            for match in re.finditer(pattern, text):
                yield f"{page.path}:{line}", match[0]
        for block in page.blocks:
            for match in re.finditer(pattern, block.text) if block.kind in ("commands", "checkout") else ():
                yield block.place, match[0]


class Links(unittest.TestCase):
    def test_every_link_leads_to_a_file_and_a_heading_of_it(self):
        for page in PAGES:
            by_path = {other.path: other for other in PAGES}
            for line, text in page.prose:
                for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`]*`", "", text)):
                    if re.match(r"https?://", target):
                        continue
                    path, _, anchor = target.partition("#")
                    path = os.path.normpath(os.path.join(os.path.dirname(page.path), path)) if path else page.path
                    with self.subTest(place=f"{page.path}:{line}", target=target):
                        self.assertTrue(os.path.exists(os.path.join(pages.ROOT, path)), "there is no such file")
                        if anchor:
                            self.assertIn(anchor, by_path[path].anchors())

    def test_every_page_that_is_named_in_backticks_exists(self):
        for place, name in spans(r"[\w./-]+\.md\b"):
            folder = os.path.dirname(place.rpartition(":")[0])
            with self.subTest(place=place, name=name):
                ways = [os.path.join(pages.ROOT, base, name) for base in ("", folder)]
                self.assertTrue(any(map(os.path.exists, ways)), "there is no such page")

    def test_every_page_that_the_program_names_exists(self):
        for name in set(re.findall(r"docs/[\w./-]+\.md", sources())):
            with self.subTest(name=name):
                self.assertTrue(os.path.exists(os.path.join(pages.ROOT, name)))

    def test_every_page_can_be_reached_from_the_readme(self):
        readme = next(page.text for page in PAGES if page.path == "README.md")
        for page in PAGES:
            if page.path not in ("README.md", "CHANGELOG.md"):
                with self.subTest(page=page.path):
                    self.assertTrue(page.path in readme or os.path.dirname(page.path) + "/)" in readme)


class Names(unittest.TestCase):
    def test_every_larder_command_in_backticks_is_one(self):
        """The parser takes its words up to `--help`, which then ends it."""
        for page in PAGES:
            if page.path == "CHANGELOG.md":
                continue
            for line, text in page.spans():
                if not text.startswith("larder ") or text.startswith("larder get"):
                    continue
                words = [word for word in re.split(r"\s+", re.sub(r"[|<>&#].*|\[|\]|…", "", text))[1:] if word]
                with self.subTest(place=f"{page.path}:{line}", command=text):
                    done = larder(*[word.replace("…", "x") for word in words], "--help")
                    self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_every_flag_that_stands_alone_is_one_of_larders(self):
        told = larder("--help").stdout
        commands = re.findall(r"^  (\w+) +[A-Z]", told, re.MULTILINE)
        told += "".join(larder(command, "--help").stdout for command in commands if command != "help")
        for page in PAGES:
            for line, text in page.spans():
                if (flag := re.match(r"--[\w-]+", text)) and flag[0] not in OTHERS:
                    with self.subTest(place=f"{page.path}:{line}"):
                        self.assertIn(flag[0], told)

    def test_every_unit_of_ours_is_in_units(self):
        there = {os.path.basename(path) for path in glob.glob(os.path.join(pages.ROOT, "units/*"))}
        for place, name in spans(r"\blarder(-\w+)*(@[\w.]*)?\.(service|timer|socket|path|target|slice)\b"):
            plain = re.sub(r"@[\w.]*\.(?=(service|timer|socket|path)$)", "@.", name)
            with self.subTest(place=place, unit=name):
                self.assertIn(plain, there | TRANSIENT)
        for place, name in spans(r"\blarder-[a-z]+(@[\w.]*)?(?=\s|$|\|)"):
            if not re.search(r"(systemctl|journalctl)", name):
                plain = re.sub(r"@.*", "@", name)
                known = {each.rsplit(".", 1)[0] for each in there | TRANSIENT}
                if "@" in name:
                    with self.subTest(place=place, unit=name):
                        self.assertIn(plain, known)

    def test_every_path_of_ours_is_one_that_the_program_knows(self):
        text = sources()
        for place, path in spans(r"/(etc|run|usr/lib|usr/share|var/lib)/larder[\w./@*-]*"):
            path = path.rstrip("./")
            # What a reader puts there.
            if re.search(r"/(secrets|profile\.d)(/|$)", path):
                continue
            with self.subTest(place=place, path=path):
                for part in path.split("/")[3:]:
                    part = PLACEHOLDER.split(part)[-1].strip(".") or "larder"
                    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", part) or re.search(r"\.(yml|json|yaml|nft|log|conf)$", part):
                        self.assertIn(part, text, "nothing makes or reads it")

    def test_every_key_of_the_profile_is_in_the_schema(self):
        told = read("docs/profile.md")
        known = set()
        for block, body in re.findall(r"^## (?:`([^`]+)`|The top)\n(.*?)(?=^## |\Z)", told, re.DOTALL | re.MULTILINE):
            known |= {f"{block}.{key}".strip(".") for key in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)}
        flat = {re.sub(r"\.NAME|\[\]", "", key) for key in known}
        for place, key in spans(r"^((network|cache|containerd|verify)(\.[a-z_]+[0-9]?)+|upstreams\.[A-Z]+\.\w+)(?=$|:)"):
            if key.endswith((".md", ".service", ".yaml")):
                continue
            plain = re.sub(r"\.[A-Z]+\b", "", key)
            with self.subTest(place=place, key=key):
                self.assertTrue(plain in flat or any(each.startswith(plain + ".") for each in flat), "no such key")

    def test_every_file_of_the_checkout_that_is_named_is_there(self):
        for place, path in spans(r"(?<![\w/.-])(src|tests|units|templates|packaging|examples|fuzz)/[\w./*-]*"):
            with self.subTest(place=place, path=path):
                self.assertTrue(glob.glob(os.path.join(pages.ROOT, re.sub("NN|NAME", "*", path.rstrip(".")))), "there is no such file")

    def test_every_make_target_scenario_and_test_is_there(self):
        makefile = read("Makefile")
        scenarios = {os.path.basename(path)[:-3].replace("_", "-") for path in glob.glob(f"{pages.HERE}/scenarios/*.py")}
        for place, target in spans(r"(?<![\w-])make [a-z0-9]+"):
            with self.subTest(place=place, target=target):
                self.assertRegex(makefile, rf"(?m)^{target[5:]}:")
        for place, command in spans(r"tests/e2e/run [a-z][a-z0-9 -]*"):
            for name in re.findall(r"(?<=\s)[a-z][\w-]*", command.split(" --")[0]):
                with self.subTest(place=place, scenario=name):
                    self.assertIn(name, scenarios)
        for place, command in spans(r"cargo test --test \w+"):
            with self.subTest(place=place, test=command):
                self.assertTrue(os.path.exists(os.path.join(pages.ROOT, "tests", command.split()[-1] + ".rs")))
        for page in PAGES:
            for block in page.blocks:
                if name := block.marks.get("run by"):
                    with self.subTest(place=block.place, name=name):
                        path = name if "/" in name else f"tests/e2e/scenarios/{name.replace('-', '_')}.py"
                        self.assertTrue(os.path.exists(os.path.join(pages.ROOT, path)))
                        programs = block.commands()[0][1].split()[0].rsplit("/", 1)[-1]
                        helpers = glob.glob("tests/e2e/*.py", root_dir=pages.ROOT)
                        text = "".join(map(read, [path, *helpers]))
                        self.assertIn(programs, text, "it does not name the program")

    def test_every_field_of_the_journal_and_variable_is_known(self):
        text = sources() + read("Makefile") + "".join(read(path) for path in ("tests/deps", "tests/e2e/lab", "tests/e2e/machine.py"))
        for place, name in spans(r"\bLARDER_[A-Z_]+"):
            with self.subTest(place=place, name=name):
                self.assertTrue(name in text or name.removeprefix("LARDER_").lower() in text)


class Architecture(unittest.TestCase):
    def test_the_table_of_imports_is_what_the_sources_import(self):
        path, marks = os.path.join(pages.ROOT, "docs/architecture.md"), ("<!-- imports -->", "<!-- /imports -->")
        page = read("docs/architecture.md")
        before, rest = page.split(marks[0])
        there, after = rest.split(marks[1])
        made = "\n| module | takes from |\n| --- | --- |\n" + "".join(
            f"| `{module}` | {', '.join(f'`{name}`' for name in names) or 'nothing of ours'} |\n"
            for module, names in imports().items()
        )
        if os.environ.get("UPDATE"):
            with open(path, "w", encoding="utf-8") as file:
                file.write(before + marks[0] + made + marks[1] + after)
            there = made
        self.assertEqual(there, made, "UPDATE=1 python3 -m unittest test_docs, in tests/e2e, writes it")


def imports():
    """By module: the others that its code names, tests left out."""
    order = re.findall(r"^pub mod (\w+);", read("src/lib.rs"), re.MULTILINE)
    found = {}
    for module in order:
        names = set()
        for path in [f"src/{module}.rs", *glob.glob(f"src/{module}/**/*.rs", root_dir=pages.ROOT, recursive=True)]:
            if re.search(r"/(tests|testing)(\.rs|/)", path):
                continue
            text = re.split(r"#\[cfg\(test\)\]\n(?:#\[[^\n]*\n)*(?:pub(?:\(\w+\))? )?mod \w+ \{", read(path))[0]
            text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
            names |= set(re.findall(r"\bcrate::(\w+)", text)) & set(order)
        found[module] = [name for name in order if name in names - {module}]
    return found


class Blocks(unittest.TestCase):
    def test_every_profile_passes_larder_check(self):
        for block in (block for page in PAGES for block in page.blocks):
            if block.kind not in ("profile", "fragment") and not self.is_profile_file(block):
                continue
            for text in block.alternatives():
                with self.subTest(place=block.place), tempfile.TemporaryDirectory() as root:
                    layers = {"profile.d/50-docs.yaml": text, "profile.yaml": BASE}
                    if re.search(r"^version:", text, re.MULTILINE):
                        layers = {"profile.yaml": text}
                    for name, content in layers.items():
                        path = os.path.join(root, "etc/larder", name)
                        os.makedirs(os.path.dirname(path), exist_ok=True)
                        with open(path, "w", encoding="utf-8") as file:
                            file.write(content)
                    done = larder("check", "--root", root)
                    self.assertEqual(done.returncode, 0, done.stderr + done.stdout)

    @staticmethod
    def is_profile_file(block):
        return re.search(r"larder/profile(\.d/.*)?\.yaml$", block.marks.get("file", ""))

    def test_every_message_is_one_of_the_programs(self):
        """Its words that are neither names nor numbers, as far as they stand together, are in the source."""
        text = re.sub(r'[\s"\\]+', " ", sources())
        for block in (block for page in PAGES for block in page.blocks):
            if block.kind != "message":
                continue
            words = " ".join(block.text.split())
            parts = re.split(r"[^ ]*[\d/:;,()][^ ]*|\beth0\b|\bARP\b|systemd-networkd|dynamic|gateway", words)
            for part in (part.strip() for part in parts):
                if len(part.split()) >= 3:
                    with self.subTest(place=block.place, part=part):
                        self.assertIn(part, text)

    def test_every_message_in_a_table_of_messages_is_one_of_the_programs(self):
        text = re.sub(r'[\s"\\]+', " ", sources())
        is_theirs = {"No space left on device"}
        for page in PAGES:
            at_messages = False
            for line, row in page.prose:
                at_messages = row.startswith("| it says") or (at_messages and row.startswith("|"))
                for said in re.findall(r"^\| `([^`]+)`", row) if at_messages else ():
                    for part in re.split(r"\b[A-Z]{3,}\b", said):
                        if part.strip() not in is_theirs:
                            with self.subTest(place=f"{page.path}:{line}", part=part):
                                self.assertIn(part.strip(), text)

    def test_every_alert_has_a_row(self):
        rules = set(re.findall(r"alert: (\w+)", read("packaging/prometheus/larder.rules.yml")))
        rows = set(re.findall(r"^\| (Larder\w+) \|", read("docs/operations.md"), re.MULTILINE))
        self.assertEqual(rows, rules)

    def test_every_block_of_commands_can_be_read(self):
        for block in (block for page in PAGES for block in page.blocks):
            if block.kind in ("commands", "checkout"):
                with self.subTest(place=block.place):
                    self.assertTrue(block.commands())

    def test_every_mark_of_a_block_that_is_not_run_gives_a_reason(self):
        for block in (block for page in PAGES for block in page.blocks):
            if "shown only" in block.marks:
                with self.subTest(place=block.place):
                    self.assertGreater(len(block.marks["shown only"]), 10)

    def test_the_json_of_blocks_that_are_json_is_json(self):
        for block in (block for page in PAGES for block in page.blocks):
            if block.language == "json":
                with self.subTest(place=block.place):
                    json.loads(block.text)


class Parsing(unittest.TestCase):
    """The reader of the pages itself."""

    def test_commands_end_where_the_shell_says_so(self):
        page = pages.parse("x.md", "text\n\n    for x in 1; do\n      echo\n    done\n    # comment\n    larder plan  # exit code 10: why\n\nend\n")
        self.assertEqual([(c[0], c[2]) for c in page.blocks[0].commands()], [(3, 0), (7, 10)])

    def test_marks_belong_to_the_next_block_alone_unless_they_stand(self):
        text = "<!-- test: exit 4, on client -->\n\n    a\n\nx\n\n    b\n\n<!-- test: from here on client -->\n\nx\n\n    c\n"
        self.assertEqual(
            [block.marks for block in pages.parse("x.md", text).blocks],
            [{"exit": "4", "on": "client"}, {}, {"on": "client"}],
        )

    def test_lists_and_tables_are_no_blocks(self):
        self.assertEqual(pages.parse("x.md", "- a\n    b\n\n| a |\n").blocks, [])

    def test_what_a_block_is_shows_from_its_text(self):
        kinds = {
            "version: 1\nupstreams: {}": "profile",
            "cache:\n  access: open": "fragment",
            "#cloud-config\nruncmd: []": "user-data",
            "error: x: y": "message",
            "make check": "checkout",
            "larder apply": "commands",
        }
        for text, kind in kinds.items():
            with self.subTest(text=text):
                self.assertEqual(pages.Block("x.md", 1, text).kind, kind)

    def test_a_key_that_is_written_twice_is_two_profiles(self):
        block = pages.Block("x.md", 1, "cache:\n  engine: auto\n  engine: { binary: /x }\n")
        self.assertEqual(block.alternatives(), ["cache:\n  engine: auto\n", "cache:\n  engine: { binary: /x }\n"])


if __name__ == "__main__":
    unittest.main()
