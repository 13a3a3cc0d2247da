"""The original's own noise under one-ulp changes of what it holds: how far rounding of weights can move its outputs.

Each stored float of a throwaway copy is moved to a neighbouring number of its type, up or down at random. What that
does to the outputs is what a fold, which rounds weights anew, may do; where outputs are further apart although every
changed value seems right, something was not seen.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from bnfold.errors import BnfoldError
from bnfold.external import all_tensors
from bnfold.relocated import Relocated
from bnfold.rounding import Array
from bnfold.verification.compare import OutputComparison, compare_outputs
from bnfold.verification.feeds import nudged
from bnfold.verification.feeds.trials import Trial
from bnfold.verification.pair_runs import PairOfRuns
from bnfold.verification.providers import REFERENCE
from bnfold.verification.reference import ReferenceRunner
from bnfold.verification.runtime import CannotRunError, Model, OrtRunner, Runner

FACTOR = 32  # how many times that noise the roundings of a fold may come to
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def unexplained(
    pair: PairOfRuns, trials: Sequence[Trial], outputs: Sequence[OutputComparison], seed: int
) -> tuple[OutputComparison, float] | None:
    """The output that is further apart than FACTOR times the original's noise, and that noise; None for none.

    Where the noise cannot be measured (a model too large to copy), nothing is known: None.
    """
    found = noise(pair, trials, seed)
    for output in outputs:
        floor = found.get(output.name)
        if floor is not None and output.relative > max(FACTOR * floor, output.limit):
            return output, floor
    return None


def noise(pair: PairOfRuns, trials: Sequence[Trial], seed: int) -> dict[str, float]:
    """How far each output moves over its scale, the most over the trials; {} where that cannot be measured."""
    worst: dict[str, float] = {}
    with contextlib.suppress(CannotRunError, BnfoldError, MemoryError, ValueError, OSError):
        moved = _runner(pair, _wobbled(pair.model, seed))
        for trial in trials:
            found = compare_outputs(pair.original.outputs, pair.original.run(trial.feeds), moved.run(trial.feeds))
            for output in found:
                far = float("inf") if output.problem else output.relative
                worst[output.name] = max(worst.get(output.name, 0.0), far)
    return worst


def _runner(pair: PairOfRuns, data: bytes) -> Runner:
    if pair.original.provider == REFERENCE:
        return ReferenceRunner(data, pair.settings.time_limit)
    return OrtRunner(data, pair.where, pair.settings)


def _wobbled(model: Model, seed: int) -> bytes:
    """The model with every float that it holds moved by one ulp."""
    proto = _with_numbers(model)
    rng = np.random.default_rng([seed, 2])
    for tensor in all_tensors(proto):
        if tensor.data_type in _FLOATS:
            array: Array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(nudged(array, rng), tensor.name))
    return bytes(proto.SerializeToString())


def _with_numbers(model: Model) -> ModelProto:
    if isinstance(model, bytes):
        return ModelProto.FromString(model)
    return (Relocated(model.read_bytes(), model.parent) if not isinstance(model, Relocated) else model).with_numbers()
