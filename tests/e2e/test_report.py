"""report.py by itself. `python3 -m unittest discover tests/e2e`."""

import contextlib
import io
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from report import Report


def added(said, last):
    """Whether what a scenario said has counted, the counts, and what was printed."""
    report = Report()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        counts = report.add("a", said, last)
    return counts, (report.passed, report.failed, report.skipped), printed.getvalue()


class Add(unittest.TestCase):
    GOOD = "ok - a: x\n1 passed, 0 failed, 2 skipped"
    BAD = "ok - a: x\nnot ok - a: y\n1 passed, 1 failed, 0 skipped"

    def test_what_passes_counts_at_once(self):
        self.assertEqual(added(self.GOOD, last=False), (True, (1, 0, 2), "ok - a: x\n"))

    def test_what_fails_first_is_told_and_not_counted(self):
        counts, numbers, printed = added(self.BAD, last=False)
        self.assertEqual((counts, numbers), (False, (0, 0, 0)))
        self.assertIn("first try: not ok - a: y\n", printed)

    def test_what_fails_last_counts(self):
        self.assertEqual(added(self.BAD, last=True)[:2], (True, (1, 1, 0)))

    def test_what_ends_without_a_count_has_failed(self):
        self.assertEqual(added("Traceback", last=False)[:2], (False, (0, 0, 0)))
        self.assertEqual(added("Traceback", last=True)[:2], (True, (0, 1, 0)))


if __name__ == "__main__":
    unittest.main()
