"""The stand-in makes the turns of Loops that have no condition, wherever they are."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from bnfold.verification.reference import ReferenceRunner
from tests.conftest import model, run, tensor


def doubling(*, inner: bool) -> ModelProto:
    """Three turns, each doubling `x` (`inner`: in a Loop of two turns); none of the Loops has a condition."""

    def body(depth: str, node):
        values = [("turn", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, None)]
        inputs = [helper.make_tensor_value_info(f"{name}{depth}", kind, shape) for name, kind, shape in values]
        outputs = [
            helper.make_tensor_value_info(f"go_on{depth}", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"next{depth}", TensorProto.FLOAT, None),
        ]
        keep = helper.make_node("Identity", [f"go{depth}"], [f"go_on{depth}"])
        return helper.make_graph([keep, node], f"body{depth}", inputs, outputs)

    node = helper.make_node("Add", ["v1", "v1"], ["next1"])
    if inner:
        deep = body("2", helper.make_node("Add", ["v2", "v2"], ["next2"]))
        node = helper.make_node("Loop", ["two", "", "v1"], ["next1"], body=deep)
    held = [tensor("three", 3, np.int64), tensor("two", 2, np.int64)]
    return model([helper.make_node("Loop", ["three", "", "x"], ["y"], body=body("1", node))], held, (1, 2))


@pytest.mark.parametrize(("inner", "factor"), [(False, 8), (True, 64)])
def test_a_loop_without_a_condition_makes_its_turns(inner: bool, factor: int) -> None:  # noqa: FBT001
    """As onnxruntime does: absent means true; onnx's evaluator by itself would make none, and compare nothing."""
    proto, feeds = doubling(inner=inner), {"x": np.float32([[1, -3]])}
    found = ReferenceRunner(proto.SerializeToString()).run(feeds)[0]
    assert np.array_equal(found, feeds["x"] * factor)
    assert np.array_equal(found, run(proto, feeds)[0])


def test_loops_inside_functions_too() -> None:
    """A local function's own Loop makes its turns."""
    proto = doubling(inner=False)
    loop = proto.graph.node.pop()
    imports = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("local", "thrice", ["three", "x"], ["y"], [loop], imports))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(helper.make_node("thrice", ["three", "x"], ["y"], domain="local"))
    found = ReferenceRunner(proto.SerializeToString()).run({"x": np.float32([[1, -3]])})[0]
    assert np.array_equal(found, np.float32([[8, -24]]))
