"""Helpers that every test may use: building small models, running them without bnfold's code, and fixtures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.affine import ChannelAffine
from bnfold.cli import _run

settings.register_profile("bnfold", deadline=None)  # how long an example takes is nobody's business here
settings.load_profile("bnfold")

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
SHARED_MODELS = ROOT.parent / "shared" / "models"


def tensor(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def batchnorm_parameters(maps: int, seed: int = 0, dtype: Any = np.float32, prefix: str = "") -> list[TensorProto]:
    """Random gamma (some negative), beta, mean and var, as initializers of those names."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.5, 2, maps) * rng.choice([-1, 1], maps)
    values = (gamma, rng.normal(size=maps), rng.normal(size=maps), rng.uniform(0.1, 3, maps))
    return [tensor(prefix + n, v, dtype) for n, v in zip(("gamma", "beta", "mean", "var"), values, strict=True)]


def model(
    nodes: Sequence[NodeProto],
    initializers: Sequence[TensorProto],
    x: Sequence[Any] = (1, 3, 8, 8),
    y: Sequence[Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    elem_type: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> ModelProto:
    """A model from x to y (or other outputs), float32 unless told; `y` is the outputs' shape, None for unknown."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", elem_type, list(x))],
        [helper.make_tensor_value_info(name, elem_type, y) for name in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def conv_bn(
    w: tuple[int, ...] = (4, 3, 3, 3), *, bias: bool = False, x: Sequence[Any] | None = None, seed: int = 0,
    opset: int = 17, ir_version: int = 8, bn: dict[str, Any] | None = None, **conv: Any,
) -> ModelProto:  # fmt: skip
    """x -> Conv 'conv' -> c -> BatchNormalization 'bn' -> y, with random weights. `w` is the weight's shape."""
    rng = np.random.default_rng(seed + 100)
    weights = [tensor("w", rng.normal(size=w))] + ([tensor("b", rng.normal(size=w[0]))] if bias else [])
    nodes = [
        helper.make_node("Conv", ["x", *(t.name for t in weights)], ["c"], name="conv", **conv),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="bn", **(bn or {})),
    ]
    shape = x if x is not None else (2, w[1] * conv.get("group", 1), *[9] * (len(w) - 2))
    return model(nodes, weights + batchnorm_parameters(w[0], seed), shape, opset=opset, ir_version=ir_version)


def run(proto: ModelProto | Path, feeds: dict[str, Any]) -> list[Any]:
    """Run in onnxruntime, all graph optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def random_feeds(proto: ModelProto, seed: int = 0, free: int = 2) -> dict[str, Any]:
    """Normal values for every float input that has no initializer; free dimensions are `free`."""
    rng = np.random.default_rng(seed)
    held = {t.name for t in proto.graph.initializer}
    feeds = {}
    for value in proto.graph.input:
        if value.name in held:
            continue
        shape = [d.dim_value or free for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = rng.normal(size=shape).astype(dtype)
    return feeds


def assert_same_outputs(
    original: ModelProto, folded: ModelProto, limit: float = 2e-6, feeds: dict[str, np.ndarray] | None = None
) -> None:
    """Both models, run by onnxruntime, agree to `limit` of each output's scale."""
    feeds = random_feeds(original) if feeds is None else feeds
    for first, second in zip(run(original, feeds), run(folded, feeds), strict=True):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        scale = np.abs(first.astype(np.float64)).max()
        assert np.abs(first.astype(np.float64) - second.astype(np.float64)).max() <= limit * scale


def ops(proto: ModelProto) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in proto.graph.node]


def initializer(proto: ModelProto, name: str) -> Any:
    """The numbers of an initializer."""
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """A function that writes a model into the test's folder and returns its path."""

    def write(proto: ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save(proto, path)
        return path

    return write


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process; the answer is exit code, stdout, stderr."""

    def call(*args: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = _run([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fold adds 1 to every map: only the folded side of a comparison is wrong."""
    right = ChannelAffine.from_batchnorm

    def wrong(*args: Any) -> ChannelAffine:
        affine = right(*args)
        return ChannelAffine(affine.scale, affine.shift + 1)

    monkeypatch.setattr(ChannelAffine, "from_batchnorm", staticmethod(wrong))
