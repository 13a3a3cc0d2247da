"""Operators that hand their input on unchanged: Identity, and Dropout at inference.

    before:  c = Conv(x, W)      i = Identity(c)           y = BatchNormalization(i, ...)
    after:   c_folded = Conv(x, W', b')                    y = Identity(c_folded)

affine(Identity(x)) = Identity(affine(x)): any scale and any shift passes, both ways. Shape and Size look at no
number of what they read, so they take anything in its place.

Dropout is the identity at inference: always from opset 7 to 11; where `is_test` is not 0 before that; where
the input `training_mode` is absent or false from opset 12 on. Source: Dropout-1, -6, -7, -10, -12, -13, -22.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step


def pull_identity(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """Ask the input."""
    facts.only_input(index)
    return Step(asks=((0, affine),))


def push_identity(_facts: GraphFacts, _index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Ask on for the output."""
    return Step(asks=((0, changes[0]),))


def push_shape(_facts: GraphFacts, _index: int, _changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Nothing to do: only the shape counts."""
    return Step()


def pull_dropout(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """Ask the input, where nothing is dropped and nobody reads the mask."""
    mode = _inert(facts, index)
    return mode if isinstance(mode, Refusal) else Step(asks=((0, affine),), frozen=mode)


def push_dropout(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Ask on for the output, where nothing is dropped and nobody reads the mask."""
    if set(changes) != {0}:
        at = label(facts.nodes[index])
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"it is the ratio or mode of {at}", at)
    mode = _inert(facts, index)
    return mode if isinstance(mode, Refusal) else Step(asks=((0, changes[0]),), frozen=mode)


def _inert(facts: GraphFacts, index: int) -> tuple[str, ...] | Refusal:
    """The overridable initializers that say that nothing is dropped."""
    node = facts.nodes[index]
    facts.only_input(index)
    mode = _training_mode(facts, index)
    if mode is None:
        message = f"{label(node)} may be in training mode: it drops activations at random"
        return Refusal(Code.TRAINING_DROPOUT_BETWEEN, message, label(node))
    if any(name and not facts.is_free(name) for name in node.output[1:]):
        return Refusal(Code.TRAINING_DROPOUT_BETWEEN, f"the mask of {label(node)} is used", label(node))
    return mode


def _training_mode(facts: GraphFacts, index: int) -> tuple[str, ...] | None:
    """None where the Dropout may drop something; else the overridable initializers that say it does not."""
    node = facts.nodes[index]
    if facts.opset() < 7:
        return () if int_attribute(node, "is_test", 0) else None
    if facts.opset() < 12 or len(node.input) < 3 or not node.input[2]:
        return ()
    mode = facts.constants.find(node.input[2])
    if mode is None or mode.tensor.array().any() or (mode.overridable and not facts.freeze_inputs):
        return None
    return mode.overridable
