"""The .deb on Debian 12."""

from scenarios import package

SECONDS = 900


def run(t):
    package.run(t, "bookworm")
