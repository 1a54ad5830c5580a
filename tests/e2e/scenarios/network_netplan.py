"""The static address where netplan manages the network."""

from scenarios import addresses

SECONDS = 600


def run(t):
    addresses.run(t, addresses.NETPLAN)
