"""The static address where networkmanager manages the network."""

from scenarios import addresses

SECONDS = 600


def run(t):
    addresses.run(t, addresses.NETWORKMANAGER)
