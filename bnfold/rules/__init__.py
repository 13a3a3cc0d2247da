"""How each operator answers the two questions `pull` and `push`. An operator is one file and one line in `table`.

- `pull(facts, index, affine, output)`: node `index` is to make affine(v) instead of the value v of its output
  number `output`. Which constants change for that, and what must its inputs become?
- `push(facts, index, changes)`: node `index` is to be fed x instead of the v = affine(x) that it was fed up to
  now, at each input slot in `changes`; all other inputs stay. Which constants change, and which affine maps
  still lie between what its outputs then hold and what they held before?

An answer is a Refusal, or a Step whose asks are the questions that are left: for `pull` pairs of an input slot
and the map which that input must be put through, for `push` pairs of an output number and the map that is still
to be applied to it. A Step without asks absorbs: all is settled by its edits.

A rule changes nothing, and does not look at who else reads the values at issue: `plan` sees to that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnfold.affine import ChannelAffine
from bnfold.edits import Edit
from bnfold.graph import GraphFacts
from bnfold.refusals import Refusal


@dataclass(frozen=True, slots=True)
class Step:
    """One operator's answer.

    Attributes:
        edits: what to change in this node.
        asks: what is left to ask: (input slot, map) for pull, (output number, map) for push.
        absorbs: the node is one of those that take maps into their weights (Conv, Gemm, ...).
        computes: the node computes with the values that it carries (it sums or averages them), rather than only
            moving them, so that their range may change.
        frozen: overridable initializers taken for constants.
        notes: what the user should know.
    """

    edits: tuple[Edit, ...] = ()
    asks: tuple[tuple[int, ChannelAffine], ...] = ()
    absorbs: bool = False
    computes: bool = False
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


PullRule = Callable[[GraphFacts, int, ChannelAffine, int], Step | Refusal]
PushRule = Callable[[GraphFacts, int, Mapping[int, ChannelAffine]], Step | Refusal]


@dataclass(frozen=True, slots=True)
class Rule:
    """One operator's answers; None where it never has one."""

    pull: PullRule | None = None
    push: PushRule | None = None


NO_RULE = Rule()
