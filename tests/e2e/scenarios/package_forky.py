"""The .deb on Debian testing."""

from scenarios import package

SECONDS = 900


def run(t):
    package.run(t, "forky")
