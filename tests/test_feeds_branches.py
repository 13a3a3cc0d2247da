"""Inputs that decide branches: over the default trials each branch runs, and a wrong fold in any of them is seen."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.verification import VerifyOptions
from bnfold.verification.feeds.trials import MadeUp
from bnfold.verification.judge import verify_pair
from bnfold.verification.runtime import OrtRunner
from tests.conftest import batchnorm_parameters, conv_bn, model, tensor
from tests.test_verify import changed

N = helper.make_node
BOOL, INT64, INT32, UINT8, FLOAT = (
    TensorProto.BOOL, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.FLOAT,
)  # fmt: skip
CPU = "CPUExecutionProvider"


def constant(name: str, value: Any):
    """A branch that puts out one number."""
    output = [helper.make_tensor_value_info(name, FLOAT, None)]
    return helper.make_graph([N("Constant", [], [name], value=tensor("", value))], name, [], output)


def choose(condition: str, output: str, then: float = 1.0, other: float = 0.0):
    """An If that says which branch ran."""
    branches = {"then_branch": constant(f"{output}_t", then), "else_branch": constant(f"{output}_e", other)}
    return N("If", [condition], [output], **branches)


def deciding(nodes, held=(), inputs=(("k", BOOL, []),), outputs=("y",)) -> ModelProto:
    """A model of these nodes, and inputs beside an x that goes nowhere."""
    proto = model(list(nodes), list(held), (2,), outputs=outputs)
    proto.graph.input.extend(helper.make_tensor_value_info(*entry) for entry in inputs)
    return proto


def ran(proto: ModelProto, seed: int = 0, trials: int = 3) -> list[tuple[float, ...]]:
    """The outputs, trial by trial, as onnxruntime has them."""
    data = proto.SerializeToString()
    runner = OrtRunner(data, CPU)
    made = MadeUp(data, runner.inputs, trials, seed, {}, {}, CPU)
    return [tuple(float(o) for o in made.first_to_run(t, runner.run)[1]) for t in range(trials)]


CONDITIONS: dict[str, tuple[list, list, int, list[int]]] = {
    "a Boolean": ([], [], BOOL, []),
    "a Boolean of one element": ([N("Identity", ["k"], ["c"])], [], BOOL, [1]),
    "not a Boolean": ([N("Not", ["k"], ["c"])], [], BOOL, []),
    "a whole number as a Boolean": ([N("Cast", ["k"], ["c"], to=BOOL)], [], INT64, []),
    "larger": ([N("Greater", ["k", "n"], ["c"])], [tensor("n", 100, np.int64)], INT64, []),
    "at most": ([N("LessOrEqual", ["k", "n"], ["c"])], [tensor("n", -7, np.int32)], INT32, []),
    "larger than the least": ([N("Greater", ["k", "n"], ["c"])], [tensor("n", 0, np.uint8)], UINT8, []),
    "equal, after arithmetic": (
        [N("Sub", ["k", "n"], ["d"]), N("Squeeze", ["d"], ["e"]), N("Equal", ["e", "zero"], ["c"])],
        [tensor("n", 31, np.int64), tensor("zero", 0, np.int64)], INT64, [1],
    ),
    "odd": (
        [N("Mod", ["k", "two"], ["d"]), N("Cast", ["d"], ["c"], to=BOOL)], [tensor("two", 2, np.int64)], INT64, [],
    ),
    "a float beyond what is drawn": ([N("Less", ["k", "n"], ["c"])], [tensor("n", 1000.0)], FLOAT, []),
    "a constant of a node": (
        [N("Constant", [], ["n"], value_int=12), N("Equal", ["n", "k"], ["c"])], [], INT64, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_both_branches_run(name: str) -> None:
    """Within three trials, and within two, whatever the seed."""
    nodes, held, kind, shape = CONDITIONS[name]
    proto = deciding([*nodes, choose("c" if nodes else "k", "y")], held, [("k", kind, shape)])
    for seed in range(20):
        assert set(ran(proto, seed)) == {(0.0,), (1.0,)}
    assert set(ran(proto, trials=2)) == {(0.0,), (1.0,)}


def test_several_inputs_each_take_both_values() -> None:
    """Three switches, each with both values in three trials, and not always all the same."""
    inputs = [(name, BOOL, []) for name in "abc"]
    proto = deciding([choose(name, f"{name}_y") for name in "abc"], (), inputs, [f"{name}_y" for name in "abc"])
    for seed in range(20):
        assert [set(values) for values in zip(*ran(proto, seed), strict=True)] == [{0.0, 1.0}] * 3
    many = [ran(proto, seed, trials=8) for seed in range(4)]
    assert all(len(set(found)) == 8 for found in many)


def test_both_of_two_that_decide_together() -> None:
    """`a and b` is true only where both are, and that is one of the trials; of `not a and k > 5` likewise."""
    nodes = [N("And", ["a", "b"], ["both"]), choose("both", "y")]
    nodes += [N("Greater", ["k", "five"], ["large"]), N("Not", ["a"], ["other"]), N("And", ["large", "other"], ["c"])]
    inputs = [("a", BOOL, []), ("b", BOOL, []), ("k", INT64, [])]
    proto = deciding([*nodes, choose("c", "z")], [tensor("five", 5, np.int64)], inputs, ("y", "z"))
    for seed in range(20):
        assert [set(values) for values in zip(*ran(proto, seed), strict=True)] == [{0.0, 1.0}] * 2


def test_branches_inside_branches() -> None:
    """An inner If counts where it runs: all three leaves are reached in three trials, whatever the seed."""
    inner = helper.make_graph(
        [choose("b", "inner", 1, 2)], "inner", [], [helper.make_tensor_value_info("inner", FLOAT, None)]
    )
    for branches in (("then_branch", "else_branch"), ("else_branch", "then_branch")):
        outer = N("If", ["a"], ["y"], **dict(zip(branches, (inner, constant("leaf", 3)), strict=True)))
        proto = deciding([outer], (), [("a", BOOL, []), ("b", BOOL, [])])
        for seed in range(20):
            assert set(ran(proto, seed)) == {(1.0,), (2.0,), (3.0,)}


def test_a_range_that_is_set_elsewhere_is_kept() -> None:
    """A number that is an index too stays one: the table has 4 rows, so 9 is out of reach, and 2 is not."""
    nodes = [N("Gather", ["table", "k"], ["row"]), N("Greater", ["k", "two"], ["c"]), N("Greater", ["k", "n"], ["d"])]
    held = [tensor("table", np.arange(4.0)), tensor("two", 2, np.int64), tensor("n", 9, np.int64)]
    proto = deciding([*nodes, choose("c", "y"), choose("d", "z")], held, [("k", INT64, [])], ("y", "z", "row"))
    for seed in range(5):
        found = ran(proto, seed)
        assert {y for y, _, _ in found} == {0.0, 1.0}
        assert {z for _, z, _ in found} == {0.0}


def test_what_is_not_decided_by_single_numbers_is_left_alone() -> None:
    """Conditions out of whole tensors, random numbers and Loops: the model runs, with nothing planned."""
    nodes = [
        N("ReduceMax", ["x"], ["m"], keepdims=0), N("Greater", ["m", "k"], ["c"]), choose("c", "y"),
        N("RandomUniform", [], ["r"], shape=[1], seed=1.0), N("Greater", ["r", "half"], ["d"]), choose("d", "z"),
    ]  # fmt: skip
    proto = deciding(nodes, [tensor("half", 0.5)], [("k", FLOAT, [])], ("y", "z"))
    assert len(ran(proto)) == 3


def branching(kind: int = BOOL) -> ModelProto:
    """A Conv and BatchNormalization in each branch of an If that an input decides."""
    branches = {}
    held = []
    for i, side in enumerate(("then", "else")):
        parameters = batchnorm_parameters(4, seed=i, prefix=f"{side}_")
        held += [*parameters, tensor(f"{side}_w", np.random.default_rng(i).normal(size=(4, 3, 3, 3)))]
        inner = [
            N("Conv", ["x", f"{side}_w"], [f"{side}_c"]),
            N("BatchNormalization", [f"{side}_c", *(t.name for t in parameters)], [f"{side}_y"]),
        ]
        output = [helper.make_tensor_value_info(f"{side}_y", FLOAT, None)]
        branches[f"{side}_branch"] = helper.make_graph(inner, side, [], output)
    nodes = [] if kind == BOOL else [N("Greater", ["k", "n"], ["c"])]
    held.append(tensor("n", 40, np.int64))
    proto = model([*nodes, N("If", ["c" if nodes else "k"], ["y"], **branches)], held, (1, 3, 8, 8))
    proto.graph.input.append(helper.make_tensor_value_info("k", kind, []))
    return proto


def renamed(proto: ModelProto) -> ModelProto:
    """The model with other names inside the branches, and with y = |y| sign y at their ends.

    So no layer but that of the outputs can tell anything about it.
    """
    copy = ModelProto.FromString(proto.SerializeToString())
    for branch in (entry.g for node in copy.graph.node if node.op_type == "If" for entry in node.attribute):
        last = branch.node[-1]
        last.output[0] = f"{branch.name}_whole"
        branch.node.append(N("Abs", [last.output[0]], [f"{branch.name}_positive"]))
        branch.node.append(N("Sign", [last.output[0]], [f"{branch.name}_sign"]))
        branch.node.append(N("Mul", [o.output[0] for o in branch.node[-2:]], [f"{branch.name}_out"]))
        branch.output[0].name = f"{branch.name}_out"
    return copy


@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize("kind", [BOOL, INT64], ids=["bool", "int64"])
def test_a_wrong_fold_in_either_branch_is_different(kind: int, rename: bool) -> None:  # noqa: FBT001
    """With each of several seeds, also where the outputs alone can tell; the right fold is equal with each."""
    original = branching(kind)
    folded = bnfold.fold(original, verify=False).model
    weights = [tensor.name for tensor in folded.graph.initializer if tensor.dims == [4, 3, 3, 3]]
    assert len(weights) == 2
    folded = renamed(folded) if rename else folded
    wrong = [changed(folded, name, lambda w: w * np.float32(1.01)).SerializeToString() for name in weights]
    for seed in range(6):
        options, data = VerifyOptions(seed=seed, threads=1), original.SerializeToString()
        assert verify_pair(data, folded.SerializeToString(), options).verdict == "equal"
        assert [verify_pair(data, bad, options).verdict for bad in wrong] == ["different"] * 2


def test_models_without_such_inputs_get_the_numbers_they_had() -> None:
    """Nothing is planned where no single number decides, so inputs, and saved failing ones, stay the same."""
    data = conv_bn().SerializeToString()
    runner = OrtRunner(data, CPU)
    made = MadeUp(data, runner.inputs, 1, 7, {}, {}, CPU)
    x = made.first_to_run(0, runner.run)[0].feeds["x"]
    assert np.array_equal(x, np.random.default_rng([7, 0, 0]).standard_normal(x.shape).astype(np.float32))
