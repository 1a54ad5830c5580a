"""Nobody is locked out, and nobody's address is taken, where systemd-networkd manages the network."""

from scenarios import safety

SECONDS = 600  # a guard waits for fifteen


def run(t):
    safety.run(t, "networkd", ("bookworm", "trixie", "forky"))
