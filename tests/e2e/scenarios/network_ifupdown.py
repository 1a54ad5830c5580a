"""The static address where ifupdown manages the network."""

from scenarios import addresses

SECONDS = 600


def run(t):
    addresses.run(t, addresses.IFUPDOWN)
