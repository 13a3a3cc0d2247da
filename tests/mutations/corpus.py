"""Every wrong fold: kinds of faults, times networks, times the places where a fault can be."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto

from tests.mutations.arrays import ARRAYS, by_arrays
from tests.mutations.build import Network, Site
from tests.mutations.evaluate import moved
from tests.mutations.interface import INTERFACES, by_interface
from tests.mutations.maps import MAPS, NotApplicable, by_map
from tests.mutations.networks import NAMES, network
from tests.mutations.places import across_samples, dead_map, exchanged_branches, map_kept, other_statistics, trap
from tests.mutations.structure import NODES, by_node

COUNTS = 8.0  # honest bounds that some map must be off by; a fold in float32 arithmetic is off by up to about 1.3

Make = Callable[[Network, Any, np.random.Generator], tuple[ModelProto, str | None]]


@dataclass(frozen=True)
class Mutant:
    """One wrong fold.

    Attributes:
        kind: what is wrong with it.
        network: which network.
        place: where: the value of a site, a node's name, or empty for the interface.
        folded: the wrong model; the right one is `original`.
        value: the value that is wrong; None where the interface is.
    """

    kind: str
    network: Network
    place: str
    folded: ModelProto
    value: str | None

    @property
    def original(self) -> ModelProto:
        """The network, not folded."""
        return self.network.model

    @property
    def name(self) -> str:
        """Kind, network and place."""
        return f"{self.kind}, {self.network.name} {self.place}".rstrip()

    @cached_property
    def moved(self) -> dict[str, float]:
        """How many honest bounds each value is off by; empty where the interface is wrong."""
        if self.value is None:
            return {}
        with np.errstate(all="ignore"):
            return moved(self.original, self.folded, self.network.feeds)

    @property
    def off(self) -> float:
        """By how many honest bounds the worst map is off; infinite where the interface is wrong."""
        return float("inf") if self.value is None else max(self.moved.values())

    @property
    def counts(self) -> bool:
        """Whether it is wrong enough for a verdict of "different" to be owed."""
        return self.off > COUNTS


def _sites(net: Network) -> list[tuple[str, Site]]:
    return [(site.value, site) for site in (*net.sites, *net.traps.values())]


def _right_sites(net: Network) -> list[tuple[str, Site]]:
    return [(site.value, site) for site in net.sites]


def _nodes(net: Network) -> list[tuple[str, str]]:
    gone = {name for site in net.sites for name in site.maps}
    return [(node.name, node.name) for node in net.model.graph.node if node.name not in gone]


def _whole(_: Network) -> list[tuple[str, str]]:
    return [("", "")]


KINDS: dict[str, tuple[Callable[[Network], list[tuple[str, Any]]], Make]] = {
    **{kind: (_right_sites, by_map(fault)) for kind, fault in MAPS.items()},
    "parameters of another BatchNormalization": (_right_sites, other_statistics),
    "branches of a Concat with each other's map": (_right_sites, exchanged_branches),
    **{kind: (_right_sites, by_arrays(fault)) for kind, fault in ARRAYS.items()},
    "bias along the samples": (_right_sites, across_samples),
    "dead map wrong": (_right_sites, dead_map),
    "map folded and kept": (_right_sites, map_kept),
    "shift through padding": (_sites, trap("padding")),
    "negative scale through MaxPool": (_sites, trap("MaxPool")),
    "negative scale through Relu": (_sites, trap("Relu")),
    **{kind: (_nodes, by_node(fault)) for kind, fault in NODES.items()},
    **{kind: (_whole, by_interface(fault)) for kind, fault in INTERFACES.items()},
}


def mutants(kind: str, name: str) -> Iterator[Mutant]:
    """All mutants of one kind on one network, in a seeded order of places; none where the kind does not apply."""
    net = network(name)
    places, make = KINDS[kind]
    found = places(net)
    order = np.random.default_rng(zlib.crc32(f"{kind} {name}".encode())).permutation(len(found))
    for index in order:
        label, place = found[index]
        rng = np.random.default_rng(zlib.crc32(f"{kind} {name} {label}".encode()))
        try:
            folded, value = make(net, place, rng)
        except NotApplicable:
            continue
        yield Mutant(kind, net, label, folded, value)


def seeded(kind: str, names: Sequence[str] = NAMES) -> list[Mutant]:
    """One mutant of a kind on every one of the networks that it applies to."""
    found = (next(mutants(kind, name), None) for name in names)
    return [mutant for mutant in found if mutant is not None]
