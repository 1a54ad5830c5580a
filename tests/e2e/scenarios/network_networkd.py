"""The static address where networkd manages the network."""

from scenarios import addresses

SECONDS = 600


def run(t):
    addresses.run(t, addresses.NETWORKD, ("bookworm", "trixie", "forky"))
