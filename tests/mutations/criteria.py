"""What other tools go by when they compare two models, written again from their sources; the tools are not run.

    onnxsim 0.8.1           U[0,1), 3 trials (its user says how many), no optimisation; allclose rtol 1e-4 atol 1e-5,
                            NaN equals NaN; only the outputs of the new model are looked at
    onnxslim 0.1.98         U[0,1), one trial, onnxruntime's default optimisation; allclose 1e-3/1e-4, NaN equals NaN
    numpy.allclose          normal inputs, one trial, no optimisation; allclose 1e-3/1e-5, output by output
    polygraphy run 0.53.6   U[0,1), one trial, no optimisation; an element fails if its absolute and its relative
                            difference are both above 1e-5, or it is NaN on one side or both; shapes must agree

A pair that cannot be run is one that differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, helper


@dataclass(frozen=True, slots=True)
class Criterion:
    """How a tool compares: inputs, trials, optimisation of the runtime, and when two outputs agree."""

    trials: int
    uniform: bool
    optimised: bool
    agree: Callable[[dict[str, Any], dict[str, Any]], bool]


def _close(rtol: float, atol: float, *, nan: bool = True) -> Callable[[Any, Any], bool]:
    return lambda old, new: np.allclose(new, old, rtol=rtol, atol=atol, equal_nan=nan)


def _new_ones(close: Callable[[Any, Any], bool]) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    return lambda old, new: all(close(old[name], new[name]) for name in new)


def _same_names(close: Callable[[Any, Any], bool]) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    return lambda old, new: old.keys() == new.keys() and all(close(old[name], new[name]) for name in old)


def _in_turn(close: Callable[[Any, Any], bool]) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    def agree(old: dict[str, Any], new: dict[str, Any]) -> bool:
        return len(old) == len(new) and all(close(a, b) for a, b in zip(old.values(), new.values(), strict=True))

    return agree


def _elementwise(old: Any, new: Any) -> bool:
    if old.shape != new.shape:
        return False
    first, second = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(all="ignore"):
        absolute = np.abs(first - second)
        relative = absolute / np.abs(second)
    return not (~(absolute <= 1e-5) & ~(relative <= 1e-5)).any()


CRITERIA: dict[str, Criterion] = {
    "onnxsim": Criterion(3, uniform=True, optimised=False, agree=_new_ones(_close(1e-4, 1e-5))),
    "onnxslim": Criterion(1, uniform=True, optimised=True, agree=_same_names(_close(1e-3, 1e-4))),
    "numpy.allclose": Criterion(1, uniform=False, optimised=False, agree=_in_turn(_close(1e-3, 1e-5, nan=False))),
    "polygraphy run": Criterion(1, uniform=True, optimised=False, agree=_same_names(_elementwise)),
}


def session(model: ModelProto, *, optimised: bool) -> Any:
    """An onnxruntime session on one thread, at the default level of optimisation or at none.

    Raises:
        Exception: onnxruntime's, where the model does not load.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def draw(model: ModelProto, trial: int, *, uniform: bool) -> dict[str, np.ndarray]:
    """Seeded inputs; free dimensions are 1, integers 0 or 1."""
    rng = np.random.default_rng(trial)
    held = {t.name for t in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or 1 for d in kind.shape.dim]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        array = rng.random(shape) if uniform else rng.normal(size=shape)
        found[value.name] = array.astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)
    return found


class Judge:
    """Applies every criterion to folds of one model; its own outputs are computed once."""

    def __init__(self, original: ModelProto) -> None:
        self._model = original
        self._sessions = {optimised: session(original, optimised=optimised) for optimised in (False, True)}
        self._outputs: dict[tuple[bool, bool, int], dict[str, Any]] = {}

    def equal(self, folded: ModelProto) -> dict[str, bool]:
        """The verdict of each criterion."""
        sessions: dict[bool, Any] = {}
        for optimised in (False, True):
            try:
                sessions[optimised] = session(folded, optimised=optimised)
            except Exception:  # noqa: BLE001 - onnxruntime's errors share no base class
                return dict.fromkeys(CRITERIA, False)
        return {name: self._agree(criterion, sessions) for name, criterion in CRITERIA.items()}

    def _agree(self, criterion: Criterion, sessions: dict[bool, Any]) -> bool:
        new = sessions[criterion.optimised]
        for trial in range(criterion.trials):
            feeds = draw(self._model, trial, uniform=criterion.uniform)
            old = self._original(criterion, trial, feeds)
            try:
                if not criterion.agree(old, _run(new, feeds)):
                    return False
            except Exception:  # noqa: BLE001 - a missing output, other shapes, or onnxruntime's own
                return False
        return True

    def _original(self, criterion: Criterion, trial: int, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        key = (criterion.optimised, criterion.uniform, trial)
        if key not in self._outputs:
            self._outputs[key] = _run(self._sessions[criterion.optimised], feeds)
        return self._outputs[key]


def _run(runner: Any, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    names = [value.name for value in runner.get_outputs()]
    return dict(zip(names, runner.run(None, feeds), strict=True))
