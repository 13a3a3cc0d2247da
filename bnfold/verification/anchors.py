"""Values of two models that are the same under other names, where decisions stand in the way of the outputs.

An output behind several discontinuous operators cannot be judged by itself: one decision that rounding turned moves
everything behind it by far more than rounding. Site by site it can, but that needs values that both models have,
and some tools rename them all. Folding touches no discontinuous operator, so those of both models can be paired,
each with one of the same operator, attributes and constants; what they read and make, and what equal nodes make of
equal values, is then the same value.

The pairing is a guess, and only ever proof of equality: where each of its sites is equal, the models are, by
whatever names. Where one is not, the guess may be what is wrong, and the outputs decide as if it had not been made.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable

from bnfold.graph import GraphFacts
from bnfold.verification.decisions import DISCONTINUOUS
from bnfold.verification.layers import Sites
from bnfold.verification.pairing import Pairing, pair
from bnfold.verification.runs import Runs
from bnfold.verification.sitecheck import SiteCheck

Key = tuple[object, ...]
_UNKNOWN = "\0"  # no value is called that


class Anchored(Sites):
    """Sites between values that were paired although their names differ; `plain` are those of equal names."""

    def __init__(self, pairing: Pairing, plain: Sites) -> None:
        super().__init__(pairing, plain.models)
        self.plain = plain

    @property
    def needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The values whose numbers are needed for either."""
        first, second = super().needed, self.plain.needed
        return first[0] | second[0], first[1] | second[1]


def anchored(sites: Sites) -> Sites:
    """The sites, between paired decisions too where some go by other names; as they are where none do."""
    original, folded = sites.pairing.original, sites.pairing.folded
    if all(name in original.producers for index in _decisions(folded) for name in folded.nodes[index].output):
        return sites
    renamed = _renamed(original, folded)
    pairing = pair(original, folded, renamed)
    if not renamed or len(pairing.names) < len(pairing.shared):  # two values for one: one would not be judged
        return sites
    return Anchored(pairing, sites)


def _anything(_: str) -> str:
    return _UNKNOWN


def _decisions(facts: GraphFacts) -> list[int]:
    return [i for i in facts.live() if facts.op(i) in DISCONTINUOUS and not facts.constants.computes(i)]


def judged(sites: Sites | None, runs: Runs) -> tuple[Sites | None, tuple[SiteCheck, ...]]:
    """The sites that hold from now on, with their checks: those of equal names where a guess shows no equality."""
    checks = sites.judge(runs) if sites is not None else ()
    if isinstance(sites, Anchored) and not all(check.equal for check in checks):
        return sites.plain, sites.plain.judge(runs)
    return sites, checks


def _renamed(original: GraphFacts, folded: GraphFacts) -> dict[str, str]:
    """Values of the folded model that are one of the original under another name; {} where decisions do not pair."""
    waiting: defaultdict[Key, list[int]] = defaultdict(list)
    for index in _decisions(original):
        waiting[_key(original, index, _anything)].append(index)
    same: dict[str, str] = {}
    for index in _decisions(folded):
        partners = waiting[_key(folded, index, _anything)]
        if not partners:
            return {}
        here, there = folded.nodes[index], original.nodes[partners.pop(0)]
        found = [*zip(here.input, there.input, strict=True), *zip(here.output, there.output, strict=False)]
        same |= {a: b for a, b in found if a and folded.constants.find(a) is None}
    _follow(original, folded, same)
    return {a: b for a, b in same.items() if a != b}


def _follow(original: GraphFacts, folded: GraphFacts, same: dict[str, str]) -> None:
    """Add to `same` what equal nodes make of values that are in it, or that are inputs of both."""
    made = {_key(original, index, lambda name: name): index for index in original.live()}
    known = {name: name for name in folded.inputs if name in original.inputs} | same
    taken = set(known.values())
    for index in folded.live():
        partner = made.get(_key(folded, index, lambda name: known.get(name, _UNKNOWN)))
        if partner is None or folded.constants.computes(index):
            continue
        for a, b in zip(folded.nodes[index].output, original.nodes[partner].output, strict=False):
            if a and b and a not in known and b not in taken:
                same[a] = known[a] = b
                taken.add(b)


def _key(facts: GraphFacts, index: int, called: Callable[[str], str]) -> Key:
    """Operator, attributes, constants and, by what they are called, the values that a node reads."""
    node = facts.nodes[index]
    attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
    reads = tuple(_digest(facts, name) or (name and called(name)) for name in node.input)
    return (facts.op(index), tuple(attributes), len(node.output), reads)


def _digest(facts: GraphFacts, name: str) -> str:
    """What stands for the numbers of a constant; empty for all else."""
    found = facts.constants.find(name) if name else None
    if found is None or found.tensor.dtype is None:
        return ""
    array = found.tensor.array()
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
