"""What a run says: one line per check, wanted beside got, and a count at the end."""

import re
import sys
import time


def brief(value, limit=600):
    text = value if isinstance(value, str) else repr(value)
    text = text.strip()
    return text if len(text) <= limit else text[:limit] + " […]"


class Report:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, 0, 0
        self.scenario, self.started = "", time.monotonic()

    def _line(self, text):
        print(f"{text}", flush=True)

    def note(self, text):
        """For the reader; counts as nothing."""
        for line in text.strip().splitlines():
            self._line(f"#   {line}")

    def begin(self, scenario):
        self.scenario, self.started = scenario, time.monotonic()
        self._line(f"# {scenario}")

    def end(self):
        self.note(f"{self.scenario}: {time.monotonic() - self.started:.0f}s")

    def check(self, what, got, wanted=True):
        """One check: `wanted` is a value, or a function of what was got with its words in its doc."""
        name = f"{self.scenario}: {what}"
        good = wanted(got) if callable(wanted) else got == wanted
        if good:
            self.passed += 1
            self._line(f"ok - {name}")
        else:
            self.failed += 1
            words = (wanted.__doc__ or wanted.__name__) if callable(wanted) else brief(wanted)
            self._line(
                f"not ok - {name}: wanted {words}, got {brief(got if isinstance(got, (str, list, dict)) else str(got))}"
            )
        return good

    def took(self, what, seconds, goal):
        """For the reader, too: this machine is shared, and how busy it is is no property of what is tried."""
        self.note(f"{self.scenario}: {what}: {seconds:.1f} s (goal: {goal} s){'' if seconds <= goal else ' MISSED'}")

    def skip(self, what, why):
        self.skipped += 1
        self._line(f"ok - {self.scenario}: {what} # SKIP {why}")

    def stopped(self, error):
        """A scenario that could not go on is a failure, whatever the reason."""
        self.failed += 1
        self._line(f"not ok - {self.scenario}: wanted the scenario to run to its end, got {brief(str(error), 1500)}")

    def add(self, scenario, said, last=True):
        """What another process reported, its count in the last line. Whether that counts: a failure does when it is the
        last word; until then it is only told."""
        lines = said.splitlines()
        count = re.fullmatch(r"(\d+) passed, (\d+) failed, (\d+) skipped", lines[-1] if lines else "")
        if not last and (not count or count[2] != "0"):
            for line in lines:
                self._line(f"first try: {line}")
            return False
        for line in lines[:-1] if count else lines:
            self._line(line)
        if count:
            self.passed, self.failed, self.skipped = (
                before + int(more) for before, more in zip((self.passed, self.failed, self.skipped), count.groups())
            )
        else:
            self.scenario = scenario
            self.stopped("it ended without a count")
        return True

    def close(self):
        self._line(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        sys.stdout.flush()
        return 1 if self.failed else 0


def has(*parts):
    """A wanted-function: the text holds every one of the parts."""

    def wanted(got):
        return all(part in got for part in parts)

    wanted.__doc__ = "text with " + " and ".join(repr(part) for part in parts)
    return wanted


def lacks(*parts):
    def wanted(got):
        return not any(part in got for part in parts)

    wanted.__doc__ = "text without " + " or ".join(repr(part) for part in parts)
    return wanted


def exits(code):
    """For the result of a command: its output is shown when the code is another."""

    def wanted(got):
        return got.code == code

    wanted.__doc__ = f"exit {code}"
    return wanted


def at_least(least):
    def wanted(got):
        return got >= least

    wanted.__doc__ = f"at least {least}"
    return wanted


def at_most(most):
    def wanted(got):
        return got <= most

    wanted.__doc__ = f"at most {most}"
    return wanted


def all_different(got):
    """values that are pairwise different, and at least two"""
    return len(got) > 1 and len(set(got)) == len(got)
