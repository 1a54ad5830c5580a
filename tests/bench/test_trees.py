"""python3 -m unittest discover tests/bench"""

import tempfile
import unittest
from pathlib import Path

import trees

TIMER = "etc/systemd/system/larder-gc@{}.timer.d/50-larder.conf"


class Differences(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.larder, self.other = Path(folder.name, "larder"), Path(folder.name, "other")
        for root in (self.larder, self.other):
            self.write(root, "etc/a.conf", "a=1\n")

    def write(self, root: Path, path: str, text: str) -> Path:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def differing(self) -> list[str]:
        return [line.split(":")[0] for line in trees.differences(self.larder, self.other)]

    def test_comments_and_bookkeeping_do_not_count(self):
        self.write(self.other, "etc/a.conf", "# by hand\n\na=1\n")
        self.write(self.larder, "var/lib/larder/state/manifest.json", "{}")
        (self.other / "var/lib/larder").mkdir(parents=True)
        self.assertEqual(self.differing(), [])

    def test_toml_counts_by_value(self):
        self.write(self.larder, "etc/x.toml", "[a.b]\nc = 'd'\n")
        self.write(self.other, "etc/x.toml", '[a]\n  [a.b]\n  c = "d" # d\n')
        self.assertEqual(self.differing(), [])

    def test_less_and_more_are_both_told(self):
        self.write(self.larder, "etc/less", "")
        self.write(self.other, "etc/more", "")
        self.assertEqual(self.differing(), ["etc/less", "etc/more"])

    def test_contents_modes_and_targets_count(self):
        self.write(self.other, "etc/a.conf", "a=2\n")
        for root, mode, target in ((self.larder, 0o600, "/a"), (self.other, 0o644, "/b")):
            self.write(root, "etc/b", "").chmod(mode)
            (root / "etc/c").symlink_to(target)
        self.assertEqual(self.differing(), ["etc/a.conf", "etc/b", "etc/c"])

    def test_instants_may_differ_but_not_coincide(self):
        for root, minutes in ((self.larder, "12"), (self.other, "34")):
            for host, minute in zip("ab", minutes):
                self.write(root, TIMER.format(host), f"[Timer]\nOnCalendar=\nOnCalendar=*:0{minute}\n")
        self.assertEqual(self.differing(), [])
        self.write(self.other, TIMER.format("a"), "[Timer]\nOnCalendar=\nOnCalendar=*:04\n")
        self.assertEqual(self.differing(), ["other"])


if __name__ == "__main__":
    unittest.main()
