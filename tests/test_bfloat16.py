"""Types that onnxruntime computes with and its Python API does not know: the reference evaluator stands in."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.verification import VerifyOptions
from bnfold.verification.judge import verify_pair
from tests.conftest import batchnorm_parameters, model, tensor
from tests.test_verify import bump, changed

TYPES = {"bfloat16": TensorProto.BFLOAT16, "float8e4m3fn": TensorProto.FLOAT8E4M3FN}


def at_the_edges(kind: int, *, takes: bool = True, gives: bool = True) -> ModelProto:
    """A Conv and BatchNormalization in float32, with Casts to and from inputs and outputs of another type."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["f", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=kind if gives else TensorProto.FLOAT),
    ]
    held = [tensor("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3))), *batchnorm_parameters(4)]
    proto = model(nodes, held, (1, 3, 8, 8), opset=22, ir_version=10)
    proto.graph.input[0].type.tensor_type.elem_type = kind if takes else TensorProto.FLOAT
    proto.graph.output[0].type.tensor_type.elem_type = kind if gives else TensorProto.FLOAT
    return proto


def judged(original: ModelProto, folded: ModelProto, **options: Any):
    """The verdict on two models in memory."""
    return verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions(**options))


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_inputs_and_outputs_that_numpy_has_no_type_for(kind: str, takes: bool) -> None:  # noqa: FBT001
    """onnxruntime loads the model and can be given no numbers: verified by the stand-in, which is said and why."""
    original = at_the_edges(TYPES[kind], takes=takes)
    result = bnfold.fold(original)
    assert result.verification
    run = result.verification.runs[0]
    assert (run.provider, run.coverage) == ("reference", "sites")
    edge = "input 'x'" if takes else "output 'y'"
    assert f"stood in, because onnxruntime cannot run the original: its Python API has no {kind}" in run.reason
    assert edge in run.reason
    wrong = changed(result.model, "w_bias", bump(1, 0.05))
    found = judged(original, wrong)
    assert found.verdict == "different"
    assert found.blame is not None
    assert (found.blame.value, found.blame.map) == ("n", 1)


def test_a_stand_in_sees_a_wrong_output_too() -> None:
    """Where sites say nothing the outputs in bfloat16 decide: a step of its own type beyond rounding is different."""
    original = at_the_edges(TensorProto.BFLOAT16)
    folded = ModelProto.FromString(original.SerializeToString())
    folded.graph.node[-1].input[0] = "doubled"
    folded.graph.node.insert(3, helper.make_node("Add", ["n", "n"], ["doubled"]))
    assert judged(original, folded).verdict == "different"


def test_weights_in_float16_run_in_onnxruntime_itself() -> None:
    """float16 has a type in numpy and kernels on the CPU: nothing stands in, in any opset."""
    nodes = at_the_edges(TensorProto.FLOAT16).graph.node[1:3]
    nodes[0].input[0], nodes[1].output[0] = "x", "y"
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    held = [tensor("w", weights, np.float16), *batchnorm_parameters(4, dtype=np.float16)]
    for opset in (11, 22):
        proto = model(nodes, held, (1, 3, 8, 8), opset=opset, ir_version=8, elem_type=TensorProto.FLOAT16)
        assert bnfold.fold(proto).verification.runs[0].provider == "CPUExecutionProvider"


def test_bfloat16_all_the_way() -> None:
    """Weights, activations, inputs and outputs in bfloat16: no kernel, so the stand-in; a wrong bias shows."""
    nodes = at_the_edges(TensorProto.BFLOAT16).graph.node[1:3]
    nodes[0].input[0], nodes[1].output[0] = "x", "y"
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    held = [tensor("w", weights, ml_dtypes.bfloat16), *batchnorm_parameters(4, dtype=ml_dtypes.bfloat16)]
    original = model(nodes, held, (1, 3, 8, 8), opset=22, ir_version=10, elem_type=TensorProto.BFLOAT16)
    result = bnfold.fold(original)
    assert result.verification
    assert result.verification.runs[0].provider == "reference"
    wrong = changed(result.model, "w_bias", lambda b: (b.astype(np.float32) * np.float32(1.25)).astype(b.dtype))
    assert judged(original, wrong).verdict == "different"
