"""Relu, LeakyRelu and PRelu carry a scale that is not negative: they bend at zero only.

    before:  c = Conv(x, W)          a = Relu(c)      y = Mul(a, s)
    after:   c_folded = Conv(x, W')      y = Relu(c_folded)

    f(s x) = s f(x)        for s >= 0 and f(x) = x where x >= 0, alpha x where x < 0, for any alpha

A shift would move the point where they bend. Where s is 0 the result is t whatever x is, and f(0 x + t) = t for
t >= 0: such a map can be pulled. The slope of PRelu stays as it is, so it need not be constant.
Source: ONNX Relu-1, -6, -13, -14, LeakyRelu-1, -6, -16, PRelu-1, -6, -7, -9, -16.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the same map."""
    del output
    constant = (affine.scale == 0) & (affine.shift >= 0)
    shifts = bool((affine.shift != 0)[~constant].any())
    return _fault(facts, index, affine, shifts=shifts) or carried(affine, pulls=True)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the same map on."""
    affine = changed_data(facts, index, changes)
    if isinstance(affine, Refusal):
        return affine
    return _fault(facts, index, affine, shifts=not affine.only_scales) or carried(affine)


def _fault(facts: GraphFacts, index: int, affine: ChannelAffine, *, shifts: bool) -> Refusal | None:
    at = label(facts.nodes[index])
    if shifts:
        return Refusal(Code.ACTIVATION_BETWEEN, f"the shift would move the point where {at} bends", at)
    if (affine.scale < 0).any():
        return Refusal(Code.NEGATIVE_SCALE, f"a negative scale would swap the two sides of {at}", at)
    return None
