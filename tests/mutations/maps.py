"""Faults in the map itself: scale and shift come out wrong, weight and bias take in what they get.

Each kind is a function of the right `Map` that gives a wrong one, or raises `NotApplicable`.
"""

from collections.abc import Callable

import numpy as np

from tests.mutations.build import Network, Site
from tests.mutations.folder import Map, Twist, chained, fold, normalised

MapFault = Callable[[Map, np.random.Generator], Map]


class NotApplicable(Exception):
    """The fault cannot be made there, or would be none."""


def normal(change: Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]) -> MapFault:
    """A fault in the parameters of a BatchNormalization: change(parameters, rng) -> those that are other."""

    def wrong(given: Map, rng: np.random.Generator) -> Map:
        if not given.normal:
            raise NotApplicable
        return normalised({**given.normal, **change(given.normal, rng)})

    return wrong


def formula(scale: Callable | None = None, shift: Callable | None = None) -> MapFault:
    """A fault in the formula: scale(p) and shift(p, s) of the parameters p."""

    def wrong(given: Map, rng: np.random.Generator) -> Map:
        p = given.normal
        if not p:
            raise NotApplicable
        s = given.scale if scale is None else scale(p)
        return Map(s, p["beta"] - s * p["mean"] if shift is None else shift(p, s), p)

    return wrong


def neighbours(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The array with one element and the next exchanged."""
    place = int(rng.integers(len(array) - 1))
    order = np.arange(len(array))
    order[[place, place + 1]] = place + 1, place
    return array[order]


def _positive(p: dict, _: np.random.Generator) -> dict:
    if (p["gamma"] >= 0).all():
        raise NotApplicable
    return {"gamma": np.abs(p["gamma"])}


def _default_epsilon(p: dict, _: np.random.Generator) -> dict:
    default = np.float64(np.float32(1e-5))
    if p["epsilon"] == default:
        raise NotApplicable
    return {"epsilon": default}


def chain(change: Callable[[list[tuple[str, np.ndarray]], int], None], op: str = "") -> MapFault:
    """A fault in one step of a chain: change(steps, place); `op`: which operator."""

    def wrong(given: Map, rng: np.random.Generator) -> Map:
        places = [i for i, step in enumerate(given.steps) if op in ("", step[0])]
        if not places:
            raise NotApplicable
        steps = list(given.steps)
        change(steps, places[int(rng.integers(len(places)))])
        return chained(tuple(steps))

    return wrong


def _as(op: str) -> Callable:
    def change(steps: list, place: int) -> None:
        steps[place] = (op, steps[place][1])

    return change


MAPS: dict[str, MapFault] = {
    "epsilon dropped": normal(lambda *_: {"epsilon": 0.0}),
    "epsilon by default": normal(_default_epsilon),
    "epsilon twice": normal(lambda p, _: {"epsilon": 2 * p["epsilon"]}),
    "epsilon outside the root": formula(lambda p: p["gamma"] / (np.sqrt(p["var"]) + p["epsilon"])),
    "epsilon as double": normal(lambda p, _: {"epsilon": round(float(p["epsilon"]), 9)}),
    "variance without root": formula(lambda p: p["gamma"] / (p["var"] + p["epsilon"])),
    "variance without Bessel's correction": normal(lambda p, _: {"var": p["var"] * 31 / 32}),
    "gamma by absolute value": normal(_positive),
    "gamma missing": normal(lambda p, _: {"gamma": np.ones_like(p["gamma"])}),
    "gamma of neighbours exchanged": normal(lambda p, rng: {"gamma": neighbours(p["gamma"], rng)}),
    "beta of neighbours exchanged": normal(lambda p, rng: {"beta": neighbours(p["beta"], rng)}),
    "mean of neighbours exchanged": normal(lambda p, rng: {"mean": neighbours(p["mean"], rng)}),
    "variance of neighbours exchanged": normal(lambda p, rng: {"var": neighbours(p["var"], rng)}),
    "mean with the other sign": normal(lambda p, _: {"mean": -p["mean"]}),
    "mean missing": normal(lambda p, _: {"mean": 0 * p["mean"]}),
    "mean not scaled": formula(shift=lambda p, _: p["beta"] - p["mean"]),
    "beta missing": normal(lambda p, _: {"beta": 0 * p["beta"]}),
    "beta scaled": formula(shift=lambda p, s: s * (p["beta"] - p["mean"])),
    "parameters rounded to float16": normal(
        lambda p, _: {k: v.astype(np.float16).astype(float) for k, v in p.items()}
    ),
    "Div as Mul": chain(_as("Mul"), "Div"),
    "Sub as Add": chain(_as("Add"), "Sub"),
    "step of a chain lost": chain(lambda steps, place: steps.pop(place) if len(steps) > 1 else None),
    "steps of a chain in another order": chain(lambda steps, place: steps.insert(0, steps.pop(place)), "Add"),
}


def by_map(fault: MapFault) -> Callable[[Network, Site, np.random.Generator], tuple]:
    """What makes a mutant of a fault in the map: the folded model, and the value that is wrong."""

    def make(network: Network, site: Site, rng: np.random.Generator) -> tuple:
        return fold(network, twist=Twist(site, maps=lambda given: fault(given, rng))), site.value

    return make
