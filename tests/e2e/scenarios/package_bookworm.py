"""The .deb on Debian 12."""

from scenarios import package

SECONDS = 600


def run(t):
    package.run(t, "bookworm")
