"""What packaging/release says of a checkout."""

import os
import shutil
import subprocess
import tempfile
import unittest

import pages

READY = {
    "Cargo.toml": '[package]\nname = "larder"\nversion = "1.2.3"\n',
    "Cargo.lock": '[[package]]\nname = "larder"\nversion = "1.2.3"\n',
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n- a point\n",
}


class Release(unittest.TestCase):
    def said(self, version="1.2.3", tag=None, **files):
        """Exit code and output for a checkout like that."""
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "packaging"))
            shutil.copy(os.path.join(pages.ROOT, "packaging/release"), os.path.join(folder, "packaging"))
            for name, text in {**READY, **files}.items():
                with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                    file.write(text)
            git = ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@example.org"]
            for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"], ["tag", tag] if tag else ["status"]):
                subprocess.run([*git, *command], check=True, capture_output=True)
            done = subprocess.run(
                [os.path.join(folder, "packaging/release"), version], capture_output=True, text=True, check=False
            )
            return done.returncode, done.stdout

    def test_a_checkout_that_is_ready_is_told_the_next_step(self):
        code, said = self.said()
        self.assertEqual(code, 0, said)
        self.assertIn("git tag --sign v1.2.3", said)

    def test_everything_that_is_missing_is_said_at_once(self):
        code, said = self.said(version="2.0.0")
        self.assertEqual((code, said.count("missing: ")), (1, 3), said)

    def test_points_that_are_still_unreleased_are_seen(self):
        text = "## [Unreleased]\n\n- new\n\n## [1.2.3] - 2026-01-31\n"
        self.assertIn("nothing left under", self.said(**{"CHANGELOG.md": text})[1])

    def test_a_version_is_released_once(self):
        self.assertIn("no tag v1.2.3", self.said(tag="v1.2.3")[1])


if __name__ == "__main__":
    unittest.main()
