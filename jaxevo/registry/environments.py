"""Environments of other libraries by name: `gymnax:MountainCar-v0`, `brax:ant`.

The names are those that help shows. The library itself says which there are, once it is imported.
Importing this file imports only the standard library.
"""

from typing import NamedTuple


class Library(NamedTuple):
    """Where the environments of a library are made, the extra that brings it, and their names."""

    home: str
    extra: str
    names: tuple[str, ...]


LIBRARIES = {
    "gymnax": Library(
        "jaxevo.tasks:environment",
        "rl",
        (
            *("CartPole-v1", "Pendulum-v1", "Acrobot-v1"),
            *("MountainCar-v0", "MountainCarContinuous-v0"),
            *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar"),
            *("SpaceInvaders-MinAtar", "Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite"),
            *("UmbrellaChain-bsuite", "DiscountingChain-bsuite", "MNISTBandit-bsuite"),
            *("SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc"),
            *("BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc"),
            *("Pong-misc", "FrozenLake-misc"),
        ),
    ),
    "brax": Library(
        "jaxevo.tasks:brax_environment",
        "brax",
        (
            *("ant", "fast", "halfcheetah", "hopper", "humanoid", "humanoidstandup"),
            *("inverted_pendulum", "inverted_double_pendulum", "pusher", "reacher", "swimmer"),
            "walker2d",
        ),
    ),
}
