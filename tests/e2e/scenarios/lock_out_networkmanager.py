"""Nobody is locked out, and nobody's address is taken, where NetworkManager manages the network."""

from scenarios import safety

SECONDS = 600  # a guard waits for fifteen


def run(t):
    safety.run(t, "networkmanager")
