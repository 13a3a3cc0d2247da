"""One line of evidence for each pair of models: what bnfold says of it, and what the criteria of other tools say."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

import bnfold
from bnfold.document import serialise
from bnfold.verification import VerifyOptions
from bnfold.verification.judge import verify_pair
from tests.mutations.corpus import mutants
from tests.mutations.criteria import Judge, draw, session
from tests.mutations.honest import arithmetics, by_bnfold, by_peer
from tests.mutations.networks import network

RIGHT = {
    1: 1e-3,
    10: 2e-2,
}  # of an output's scale, by the type of the outputs: clearly right, for another tool's fold


@dataclass(slots=True)
class Row:
    """One pair.

    Attributes:
        kind: of the mutant, or who made the fold.
        where: network and place.
        off: honest bounds that the worst map is off by; of a fold by another tool, how far an output differs over
            its scale; infinite where the interface is another.
        wrong: whether "different" is owed; None where it is not known.
        equal: who calls the pair equal, by name; bnfold among them.
        value: the value that is wrong, where it is one.
        blame: the value that bnfold names; None where it names none.
        reason: bnfold's reason.
        seconds: that bnfold took.
    """

    kind: str
    where: str
    off: float
    wrong: bool | None
    equal: dict[str, bool] = field(default_factory=dict)
    value: str | None = None
    blame: str | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def named(self) -> bool:
        """Whether the fault sits in one value and that one is named."""
        return self.value is not None and self.value == self.blame


def _judged(row: Row, original: ModelProto, folded: ModelProto, judge: Judge) -> Row:
    started = time.perf_counter()
    found = bnfold.verify(original, folded, threads=1)
    row.seconds = time.perf_counter() - started
    row.equal = {"bnfold": found.verdict == "equal", **judge.equal(folded)}
    row.reason = f"{found.verdict}: {found.reason}"
    row.blame = None if found.blame is None else found.blame.value
    return row


def of_mutants(task: tuple[str, str]) -> list[Row]:
    """Every mutant of one kind on one network."""
    kind, name = task
    judge = Judge(network(name).model)
    return [
        _judged(Row(kind, f"{name} {m.place}", m.off, m.counts, value=m.value), m.original, m.folded, judge)
        for m in mutants(kind, name)
    ]


def of_right_folds(name: str) -> list[Row]:
    """The folds of one network that are right by construction."""
    net = network(name)
    judge = Judge(net.model)
    folds = [("own arithmetic", label, f) for label, f in arithmetics(net)]
    folds += [("bnfold", label, f) for label, f in by_bnfold(net.model)]
    return [_judged(Row(k, f"{name}, {label}", 0.0, wrong=False), net.model, f, judge) for k, label, f in folds]


def of_own_models(path: Path) -> list[Row]:
    """bnfold's folds of a model in a file, with every flag."""
    proto = onnx.load(path)
    judge = Judge(proto)
    folds = by_bnfold(proto)
    return [_judged(Row("bnfold", f"{path.stem}, {label}", 0.0, wrong=False), proto, f, judge) for label, f in folds]


def of_peer(task: tuple[str, str | Path]) -> list[Row]:
    """The fold of one network, by name, or of a model in a file, by another tool."""
    peer, source = task
    proto = onnx.load(source) if isinstance(source, Path) else network(source).model
    name = source.stem if isinstance(source, Path) else source
    try:
        folded = by_peer(peer, proto)
        off = disagreement(proto, folded)
    except Exception as error:  # noqa: BLE001 - tools raise what they like
        return [Row(peer, name, float("inf"), None, reason=f"no fold: {type(error).__name__}: {str(error)[:80]}")]
    limit = RIGHT.get(proto.graph.output[0].type.tensor_type.elem_type, 0.0)
    wrong = True if np.isinf(off) else False if off <= limit else None
    return [_judged(Row(peer, name, off, wrong), proto, folded, Judge(proto))]


def disagreement(original: ModelProto, folded: ModelProto) -> float:
    """The largest difference of an output over its scale; infinite where the interface or what is finite differs."""
    listed = original.ir_version < 4
    if _interface(original, listed=listed) != _interface(folded, listed=listed):
        return float("inf")
    feeds = draw(original, 0, uniform=False)
    first, second = (session(m, optimised=False).run(None, feeds) for m in (original, folded))
    worst = 0.0
    for old, new in zip(first, second, strict=True):
        if old.shape != new.shape or (np.isfinite(old) != np.isfinite(new)).any():
            return float("inf")
        difference = np.abs(old.astype(float) - new).max(initial=0)
        worst = max(worst, float(difference / np.abs(old.astype(float)).max(initial=1e-30)))
    return worst


def _interface(model: ModelProto, *, listed: bool) -> list[list[tuple[str, int]]]:
    """Names and types of inputs and outputs; without stored tensors where those are `listed` as inputs (IR 3)."""
    stored = {t.name for t in model.graph.initializer} if listed else set()
    parts = ([v for v in model.graph.input if v.name not in stored], model.graph.output)
    return [[(v.name, v.type.tensor_type.elem_type) for v in part] for part in parts]


def of_seeds(task: tuple[Path, int]) -> list[Row]:
    """bnfold's fold of a model in a file, on inputs from seeds 0, 1, ... each."""
    path, seeds = task
    folded = serialise(bnfold.fold(path, verify=False).model)
    rows = []
    for seed in range(seeds):
        started = time.perf_counter()
        found = verify_pair(path, folded, VerifyOptions(seed=seed, threads=1))
        reason = f"{found.verdict}: {found.reason}"
        row = Row("seeds", f"{path.stem}, seed {seed}", 0.0, wrong=False, reason=reason)
        row.equal, row.seconds = {"bnfold": found.verdict == "equal"}, time.perf_counter() - started
        rows.append(row)
    return rows
