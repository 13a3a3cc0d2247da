"""One example from end to end: fold it, judge the result, fold again, fold it with its nodes in another order."""

import inspect
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from onnx import ModelProto

import bnfold
from tests.random_graphs.compare import Wrong
from tests.random_graphs.judge import captures, judge
from tests.random_graphs.running import CannotRun

CHOICES: dict[str, tuple[tuple[Any, ...], tuple[float, ...]]] = {
    "sources": (("affine", "all", "bn"), (0.4, 0.4, 0.2)),
    "clone_shared": ((False, True), (0.9, 0.1)),
    "partial": ((False, True), (0.9, 0.1)),
    "merge_branches": ((False, True), (0.9, 0.1)),
    "assume_range": ((False, True), (0.7, 0.3)),
}


@dataclass(slots=True)
class Outcome:
    """What became of one example: sites by bnfold's own count, refusals by code, the worst share of the limit."""

    found: int = 0
    folded: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    skipped: str = ""


def random_options(rng: np.random.Generator) -> dict[str, Any]:
    """Options of `fold`, as far as this bnfold has them."""
    known = inspect.signature(bnfold.fold).parameters
    chosen = {name: values[int(rng.choice(len(values), p=p))] for name, (values, p) in CHOICES.items()}
    return {name: value for name, value in chosen.items() if name in known}


def check(
    proto: ModelProto, sizes: Mapping[str, tuple[int, ...]], rng: np.random.Generator, *, orders: int | None = None,
    **options: Any,
) -> Outcome:  # fmt: skip
    """Fold, and raise Wrong where anything is not as it must be.

    Args:
        proto: a model that onnxruntime can run; others are skipped.
        sizes: a shape for each input, which its free dimensions are taken from.
        rng: for inputs, and for other orders of the nodes.
        orders: how many other orders to try; None for one, three times in ten.
        options: of `bnfold.fold`.
    """
    before = proto.SerializeToString(deterministic=True)
    result = _fold(proto, options)
    folded = result.model
    if proto.SerializeToString(deterministic=True) != before:
        raise Wrong("input changed", "fold changed the model that it was given")
    outcome = Outcome(len(result.report.sites), len(result.folded), Counter(site.code for site in result.refused))
    if not result.folded and folded.SerializeToString() != proto.SerializeToString():
        raise Wrong("nothing folded", "and yet the model has changed")
    try:
        outcome.worst = judge(proto, folded, sizes, rng, options)
    except CannotRun as problem:
        outcome.skipped = str(problem)
        return outcome
    _again(folded, options)
    for _ in range(int(rng.random() < 0.3) if orders is None else orders):
        _in_another_order(proto, options, result, rng)
    return outcome


def _fold(proto: ModelProto, options: Mapping[str, Any]) -> Any:
    try:
        with mock.patch.dict(os.environ, BNFOLD_DEBUG="1"):  # nothing is taken for a contradiction of the model
            return bnfold.fold(proto, verify=False, **options)
    except Exception as error:
        raise Wrong(f"crash {type(error).__name__}", str(error)) from error


def _again(folded: ModelProto, options: Mapping[str, Any]) -> None:
    second = _fold(folded, options)
    if second.folded:
        raise Wrong("second fold", f"folds {[site.site for site in second.folded]}")
    if second.model.SerializeToString() != folded.SerializeToString():
        raise Wrong("second fold", "changes the model")


def _in_another_order(proto: ModelProto, options: Mapping[str, Any], result: Any, rng: np.random.Generator) -> None:
    """The outcome of every site is the same when the file lists the nodes in another order."""
    other = _fold(reordered(proto, rng), options)
    first, second = (
        sorted((site.output, site.outcome, site.code or "") for site in r.report.sites) for r in (result, other)
    )
    if first != second and not options.get("merge_branches"):  # which of two like branches stays is a free choice
        change = next(iter(set(first) ^ set(second)))
        raise Wrong("order", f"the outcome depends on the order of the nodes: {change}")
    left, others = (
        Counter(n.op_type for n in r.model.graph.node if n.op_type != "Constant") for r in (result, other)
    )
    if left != others:
        raise Wrong("order", f"the operators left depend on the order of the nodes: {left - others}, {others - left}")


def reordered(proto: ModelProto, rng: np.random.Generator) -> ModelProto:
    """The same graph with its nodes in another topological order."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    waiting = list(proto.graph.node)
    made = {name for node in waiting for name in node.output}
    del copy.graph.node[:]
    while waiting:
        ready = [i for i, node in enumerate(waiting) if not made & {*node.input, *captures(node)}]
        node = waiting.pop(ready[int(rng.integers(len(ready)))])
        made -= set(node.output)
        copy.graph.node.append(node)
    return copy
