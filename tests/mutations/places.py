"""Faults that only some sites can have: another's statistics, a Concat's branches, a dead map, a fold that is a trap.

Each makes the folded model and gives the value that is wrong, or raises `NotApplicable`.
"""

from collections.abc import Callable

import numpy as np

from tests.mutations.arrays import by_arrays, need
from tests.mutations.build import Network, Site
from tests.mutations.folder import Core, Map, Twist, fold
from tests.mutations.maps import NotApplicable, by_map, normal
from tests.mutations.model import Model
from tests.mutations.networks import right


def _halves(given: Map, _: np.random.Generator) -> Map:
    half = len(given.scale) // 2
    return Map(np.roll(given.scale, half), np.roll(given.shift, half), given.normal)


def other_statistics(network: Network, site: Site, rng: np.random.Generator) -> tuple:
    """The parameters of another BatchNormalization with as many maps."""
    model = Model(network.model)
    own = model.node(site.maps[0])
    others = [
        n for n in model.graph.node
        if n.op_type == own.op_type == "BatchNormalization" and n.name != own.name
        and model.held(n.input[1]).dims == model.held(own.input[1]).dims
    ]  # fmt: skip
    if not others:
        raise NotApplicable
    other = others[int(rng.integers(len(others)))]
    names = ("gamma", "beta", "mean", "var")
    taken = {key: model.array(name).astype(float) for key, name in zip(names, other.input[1:], strict=True)}
    wrong = by_map(normal(lambda *_: taken))
    return wrong(network, site, rng)


def exchanged_branches(network: Network, site: Site, rng: np.random.Generator) -> tuple:
    """Each branch of a Concat gets the other's part of the map."""
    if len(site.cores) != 2:
        raise NotApplicable
    return by_map(_halves)(network, site, rng)


def bias_across(core: Core, rng: np.random.Generator) -> None:
    """The bias of a product laid along the samples; there are as many as maps."""
    need(core.weight.ndim == 2)
    core.bias = core.bias.reshape(-1, 1)


def across_samples(network: Network, site: Site, rng: np.random.Generator) -> tuple:
    """`bias_across` where there are as many samples as maps."""
    need(network.name == "dense")
    return by_arrays(bias_across)(network, site, rng)


def dead_map(network: Network, site: Site, rng: np.random.Generator) -> tuple:
    """A map that nothing downstream looks at, its weights being zero, is twice what it should be."""
    need(network.name == "pooled" and site is network.sites[-1])

    def wrong(core: Core) -> None:
        core.weight[2] *= 2

    return fold(network, twist=Twist(site, arrays=wrong)), site.value


def map_kept(network: Network, site: Site, rng: np.random.Generator) -> tuple:
    """The BatchNormalization is folded and kept, so that it is applied twice."""
    model = Model(right(network.name))
    if site.side == "before" or len(site.maps) > 1:
        raise NotApplicable
    made = Model(network.model).node(site.maps[0])
    end = model.maker(site.value)
    made.input[0] = end.output[0] = f"{site.value}_again"
    model.graph.node.insert(model.place(end.name) + 1, made)
    original = Model(network.model)
    for name in made.input[1:]:
        model.put(name, original.array(name))
    return model.proto, site.value


def trap(which: str) -> Callable[[Network, Site, np.random.Generator], tuple]:
    """A fold that must not be done at all: through padding, or of a negative scale through MaxPool or Relu."""

    def make(network: Network, site: Site, rng: np.random.Generator) -> tuple:
        need(network.traps.get(which) == site)
        return fold(network, twist=Twist(site)), site.value

    return make
