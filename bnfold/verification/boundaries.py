"""Whether elements that were decided otherwise lie next to a decision boundary: by the original's own numbers.

Asked where two models can only be judged by their outputs, of an output that a discontinuous operator makes
(`decisions`). The original is run once more, with that operator's input v among its outputs, and once with each of
its inputs moved by one ulp: v is known to within

    bound = max(limit, noise) * max |v|        limit, noise: what v would be allowed to be off by as an output

so an element may be decided as v - bound or v + bound would be, by one step at most; which of several largest is
named may change among those within 2 bound of it. All other elements have to agree as in any output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute
from bnfold.rounding import FLOAT_TYPES, Array, to_float64
from bnfold.verification.compare import OutputComparison, compare_arrays
from bnfold.verification.decisions import CHOICES, COMPARISONS, Decision, decided, decision_behind
from bnfold.verification.endtoend import NOISE_CEILING, NOISE_FACTOR
from bnfold.verification.feeds import Feeds, nudge
from bnfold.verification.onenode import NotEvaluatedError, reference
from bnfold.verification.pair_runs import PairOfRuns
from bnfold.verification.reference import storage_type
from bnfold.verification.runtime import CannotRunError, load_graph


@dataclass(frozen=True, slots=True)
class _Run:
    """What the original had at the values that one decision needs; `bounds` is how far each may be off."""

    facts: GraphFacts
    known: Mapping[str, Array]
    bounds: Mapping[str, float]

    def array(self, name: str) -> Array | None:
        if not name:
            return None
        constant = self.facts.constants.find(name)
        found = self.known.get(name) if constant is None else constant.tensor.array()
        if found is None:
            raise NotEvaluatedError(f"{name!r} is not known")
        return found

    def evaluate(self, node: NodeProto, inputs: list[Array | None]) -> list[Array]:
        opset = self.facts.opset()
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            opset = max(opset, 19)  # which takes all that came before; onnx's evaluator knows no older version
        return reference(node, inputs, opset)


@dataclass(frozen=True, slots=True)
class Ran:
    """One trial: what was fed, what both models made of it, and the seed of the directions in which inputs move."""

    feeds: Feeds
    original: list[Any]
    folded: list[Any]
    seed: int


def by_decisions(
    pair: PairOfRuns, facts: GraphFacts, ran: Ran, outputs: list[OutputComparison], *, covered: bool
) -> list[OutputComparison]:
    """Judge outputs that discontinuous operators of the original (`facts`) decide.

    Where sites decide about values (`covered`), a decision that turned is none of the two models' doing; a whole
    number that is another one without any decision upstream stays a fault. Elsewhere boundaries tell, and what they
    cannot tell stays as it is.
    """
    if all(output.equal and not output.turned for output in outputs):
        return outputs
    if not covered:
        return [_settled(pair, facts, ran, output) for output in outputs]
    behind = decided(facts, pair.original.outputs)
    return [o if behind.get(o.name.split("[")[0], False) else replace(o, turned=0) for o in outputs]


def _settled(pair: PairOfRuns, facts: GraphFacts, ran: Ran, output: OutputComparison) -> OutputComparison:
    names = pair.original.outputs
    plain = output.equal and not output.turned
    if plain or output.tolerance or output.name not in names or (output.problem and not output.turned):
        return output
    place = names.index(output.name)
    expected, found = np.asarray(ran.original[place]), np.asarray(ran.folded[place])
    decision = decision_behind(facts, output.name)
    if decision is None or expected.shape != found.shape:
        return output
    try:
        explained = _explained(_look(pair, facts, decision, ran), decision, expected, found, output)
    except (CannotRunError, NotEvaluatedError):
        return output
    turned = np.count_nonzero(~_close(expected, found, output.limit * output.scale))
    return _told(output, int(turned), int(np.count_nonzero(~explained)), expected)


def _told(output: OutputComparison, turned: int, left: int, expected: Array) -> OutputComparison:
    """The verdict where `turned` elements are others, and `left` of them are not explained."""
    if left:
        words = f"{turned} of {expected.size} elements differ, {left} of them far from where the decision turns"
        return replace(output, equal=False, problem=words, turned=turned)
    if expected.dtype in FLOAT_TYPES:
        return replace(output, equal=True, turned=turned)
    share = turned / expected.size
    return replace(output, equal=True, problem="", turned=turned, relative=share, limit=share)


def _look(pair: PairOfRuns, facts: GraphFacts, decision: Decision, ran: Ran) -> _Run:
    names = [*decision.reads(facts), facts.nodes[decision.node].output[decision.slot]]
    again = pair.original_with(names)
    known, moved = again.look_inside(ran.feeds)[1], again.look_inside(nudge(ran.feeds, ran.seed))[1]
    stored = storage_type(load_graph(pair.model))
    return _Run(facts, known, {name: _bound(known[name], moved[name], stored) for name in names if name in moved})


def _bound(value: Array, moved: Array, stored: np.dtype | None) -> float:
    """How far a value of the original may be off; 0 for what is no float."""
    if value.dtype not in FLOAT_TYPES:
        return 0.0
    noise = compare_arrays("", value, moved, stored)
    if noise.problem or not noise.elements:
        return 0.0
    return max(noise.limit, min(NOISE_FACTOR * noise.relative, NOISE_CEILING)) * noise.scale


def _explained(run: _Run, decision: Decision, expected: Array, found: Array, output: OutputComparison) -> Any:
    """Which elements of an output are as they were, or as the decision may be otherwise: truth values."""
    near = output.limit * output.scale
    right = _close(expected, found, near)
    for other in _alternatives(run, decision):
        if right.all():
            break
        right |= _close(_through(run, decision, other), found, near)
    return right


def _close(first: Array, second: Array, near: float) -> Any:
    if second.dtype not in FLOAT_TYPES:
        return np.asarray(first == second)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(to_float64(first) - to_float64(second)) <= near) | (first == second)


def _through(run: _Run, decision: Decision, taken: Array) -> Array:
    """The output that the tail makes of other decisions."""
    value = run.facts.nodes[decision.node].output[decision.slot]
    made: dict[str, Array] = {value: taken}
    for index in decision.tail:
        node = run.facts.nodes[index]
        inputs = [made[name] if name in made else run.array(name) for name in node.input]
        made |= dict(zip(node.output, run.evaluate(node, inputs), strict=False))
    return made[decision.output]


def _alternatives(run: _Run, decision: Decision) -> Iterator[Array]:
    """What the decision may be as well, each time with as many elements changed as may be."""
    node, op = run.facts.nodes[decision.node], run.facts.op(decision.node)
    taken = run.array(node.output[decision.slot])
    inputs = [run.array(name) for name in node.input]
    bounds = [run.bounds.get(name, 0.0) for name in node.input]
    if taken is None or inputs[0] is None or inputs[0].dtype not in FLOAT_TYPES:
        return
    value = to_float64(inputs[0])
    if op in CHOICES:
        yield from _other_choices(node, value, taken, bounds[0])
    elif op in COMPARISONS:
        second = inputs[1]
        if second is not None:
            yield np.where(np.abs(value - to_float64(second)) <= sum(bounds), np.logical_not(taken), taken)
    elif taken.dtype == np.bool_:
        yield np.where(np.abs(value) <= bounds[0], np.logical_not(taken), taken)
    else:
        for moved in (value - bounds[0], value + bounds[0]):
            yield _one_step(run.evaluate(node, [moved, *inputs[1:]])[0], taken)


def _one_step(other: Array, taken: Array) -> Array:
    wide: Float64Array = taken.astype(np.float64)
    return np.asarray(np.clip(other.astype(np.float64), wide - 1, wide + 1).astype(taken.dtype))


def _other_choices(node: NodeProto, value: Float64Array, taken: Array, bound: float) -> Iterator[Array]:
    """ArgMax, ArgMin, TopK: each index, where its number is as large as the one that was chosen."""
    top = node.op_type == "TopK"
    axis = int_attribute(node, "axis", -1 if top else 0)
    keeps = top or bool(int_attribute(node, "keepdims", 1))
    chosen = taken if keeps else np.expand_dims(taken, axis)
    numbers = np.take_along_axis(value, chosen.astype(np.int64), axis)
    for index in range(value.shape[axis]):
        near = np.abs(np.take(value, [index], axis) - numbers) <= 2 * bound
        if (near & (chosen != index)).any():
            other = np.where(near, index, chosen).astype(taken.dtype)
            yield other if keeps else np.squeeze(other, axis)
