"""Right folds: bnfold's own with every flag, those of `folder` in three arithmetics, and those of other tools."""

import contextlib
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

import bnfold
from tests.mutations.build import Network
from tests.mutations.folder import fold

FLAGS = ("freeze_inputs", "clone_shared", "partial", "merge_branches", "assume_range")


def arithmetics(network: Network) -> Iterator[tuple[str, ModelProto]]:
    """The fold of `folder` in float64, in float32, and step by step in the weights' own type."""
    own = numpy_helper.to_array(network.model.graph.initializer[0]).dtype.type
    for dtype in dict.fromkeys((np.float64, np.float32, own)):
        yield f"{np.dtype(dtype)} arithmetic", fold(network, dtype)


def by_bnfold(model: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """bnfold's own folds: by default, with each choice of sources, with each flag, with all of them.

    Freezing inputs changes the interface on purpose, so that it is no equal pair where the model stores inputs.
    """
    stored = {t.name for t in model.graph.initializer} & {v.name for v in model.graph.input}
    flags = [flag for flag in FLAGS if flag != "freeze_inputs" or not stored]
    choices = {"default": {}, "bn": {"sources": "bn"}, "all": {"sources": "all"}}
    choices |= {flag: {flag: True} for flag in flags}
    choices["everything"] = {"sources": "all", **dict.fromkeys(flags, True)}
    for name, options in choices.items():
        yield f"bnfold, {name}", bnfold.fold(model, verify=False, **options).model


def _onnxsim(model: ModelProto) -> ModelProto:
    return importlib.import_module("onnxsim").simplify(model)[0]


def _onnxslim(model: ModelProto) -> ModelProto:
    return importlib.import_module("onnxslim").slim(model)


def _onnxscript(model: ModelProto) -> ModelProto:
    return importlib.import_module("onnxscript.optimizer").optimize(model)


def _onnxoptimizer(model: ModelProto) -> ModelProto:
    passes = ["fuse_bn_into_conv", "fuse_add_bias_into_conv"]
    return importlib.import_module("onnxoptimizer").optimize(model, passes)


def _onnxruntime(model: ModelProto) -> ModelProto:
    ort = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return ModelProto.FromString(path.read_bytes())


PEERS: dict[str, Callable[[ModelProto], ModelProto]] = {
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "onnxoptimizer": _onnxoptimizer,
    "onnxruntime": _onnxruntime,
}


def installed(peer: str) -> bool:
    """Whether the tool can be imported."""
    return find_spec(peer) is not None


def by_peer(peer: str, model: ModelProto) -> ModelProto:
    """The model as another tool folds it; the tool says nothing meanwhile.

    Raises:
        Exception: whatever the tool raises.
    """
    given = ModelProto.FromString(model.SerializeToString())
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PEERS[peer](given)
