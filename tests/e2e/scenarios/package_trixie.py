"""The .deb on Debian 13."""

from scenarios import package

SECONDS = 600


def run(t):
    package.run(t, "trixie")
