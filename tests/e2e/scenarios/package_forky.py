"""The .deb on Debian testing."""

from scenarios import package

SECONDS = 600


def run(t):
    package.run(t, "forky")
