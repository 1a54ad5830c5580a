"""The .deb on Debian 13."""

from scenarios import package

SECONDS = 900


def run(t):
    package.run(t, "trixie")
