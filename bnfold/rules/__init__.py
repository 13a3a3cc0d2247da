"""How each operator answers the question `pull`. An operator is added by one file and one line in PULL.

The contract of a pull rule: given node `index`, one of whose outputs is to become affine(output), either

- *absorb*: return a Step with the constants to change, such that the node then computes affine(output), or
- *carry*: return a Step with the values upstream that must become affine themselves, or
- refuse: return a Refusal.

A rule changes nothing and asks nothing about who else uses the output: `plan.pull` has made sure that the
site is its only use.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnfold.affine import ChannelAffine
from bnfold.edits import SetConstant
from bnfold.graph import GraphFacts
from bnfold.refusals import Refusal


@dataclass(frozen=True, slots=True)
class Step:
    """One operator's answer.

    Attributes:
        edits: constants to change in this node.
        asks: values upstream, each with the map that it must come to hold.
        frozen: overridable initializers taken for constants.
        notes: what the user should know.
    """

    edits: tuple[SetConstant, ...] = ()
    asks: tuple[tuple[str, ChannelAffine], ...] = ()
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


PullRule = Callable[[GraphFacts, int, ChannelAffine], Step | Refusal]


@functools.cache
def pull_rules() -> Mapping[str, PullRule]:
    """The table: operator to rule."""
    from bnfold.rules import conv, passthrough

    return {
        "Conv": conv.pull,
        "Dropout": passthrough.pull_dropout,
        "Identity": passthrough.pull_identity,
    }
