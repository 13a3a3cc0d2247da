"""Wrong folds that once passed and right ones that did not, found by attacking the verifier."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from tests.conftest import MODELS, batchnorm_parameters, initializer, model, tensor

N = helper.make_node
PADDED = {"pads": [1, 1, 1, 1]}


def folded_parameters(channels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of the BatchNormalization of `batchnorm_parameters`, in float64."""
    gamma, beta, mean, var = (
        initializer(model([N("Relu", ["x"], ["y"])], [t]), t.name).astype(np.float64)
        for t in batchnorm_parameters(channels)
    )
    s = gamma / np.sqrt(var + np.float32(1e-5))
    return s, beta - s * mean


def weight() -> np.ndarray:
    """Of a 3x3 Conv of 3 channels into 4 maps."""
    return np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)


def network(tail: list[Any], held: list[TensorProto], outputs: tuple[str, ...], size: int = 32) -> ModelProto:
    """x -> Conv -> BatchNormalization -> y, and a tail."""
    nodes = [
        N("Conv", ["x", "w"], ["c"], **PADDED),
        N("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    constants = [tensor("w", weight()), *batchnorm_parameters(4), *held]
    return model([*nodes, *tail], constants, ("N", 3, size, size), outputs=outputs)


def folded(tail: list[Any], held: list[TensorProto], outputs: tuple[str, ...], size: int = 32) -> ModelProto:
    """The same, folded by hand."""
    s, t = folded_parameters()
    constants = [tensor("v", weight() * s.reshape(-1, 1, 1, 1)), tensor("t", t), *held]
    nodes = [N("Conv", ["x", "v", "t"], ["y"], **PADDED)]
    return model([*nodes, *tail], constants, ("N", 3, size, size), outputs=outputs)


def test_an_output_that_is_constant_is_compared():
    """Other numbers in an output that nothing computes: no site shows it, and the outputs do."""
    tail = [N("Identity", ["k"], ["z"])]
    first, second, third = (tensor("k", numbers) for numbers in ([1, 2, 3], [1, 2, 3], [2, 3, 4]))
    original = network(tail, [first], ("y", "z"))
    assert bnfold.verify(original, folded(tail, [second], ("y", "z"))).verdict == "equal"
    assert bnfold.verify(original, folded(tail, [third], ("y", "z"))).verdict == "different"


def test_an_output_that_became_constant_is_compared():
    """Computed before, zeros now."""
    original = network([N("Sigmoid", ["y"], ["z"])], [], ("y", "z"))
    zeros = tensor("k", np.zeros((2, 4, 32, 32)))
    assert bnfold.verify(original, folded([N("Identity", ["k"], ["z"])], [zeros], ("y", "z"))).verdict == "different"


@pytest.mark.parametrize("pads", [[0, 0, 2, 2], [0, 0, 1, 1]])
def test_padding_at_the_far_border_is_seen(pads):
    """SAME_UPPER on an odd size, by stride 2, as other pads: a corner of even size would not show it."""
    first = N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3])
    second = N("Conv", ["x", "w"], ["y"], pads=pads, strides=[2, 2], kernel_shape=[3, 3])
    pair = [model([node], [tensor("w", weight())], (2, 3, 31, 31)) for node in (first, second)]
    assert bnfold.verify(*pair).verdict == "different"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"op_type": "ReduceMean", "axes": [2, 3]}, {"op_type": "ReduceMean", "axes": [0, 2, 3]}),
        ({"op_type": "AveragePool", "kernel_shape": [2, 2], "strides": [2, 2]},
         {"op_type": "AveragePool", "kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ],
    ids=["over the batch", "ceil_mode"],
)  # fmt: skip
def test_what_a_corner_of_one_sample_would_not_show(first, second):
    """Means over other axes and other sizes are seen although only a corner is looked at first."""
    pair = [
        make(
            [N(inputs=["y"], outputs=["q"], **node), N("Add", ["q", "one"], ["z"])], [tensor("one", 1.0)], ("z",), 31
        )
        for make, node in ((network, first), (folded, second))
    ]
    assert bnfold.verify(*pair).verdict == "different"


def looking_up(nodes: list[Any], held: list[TensorProto]) -> ModelProto:
    """Eight whole numbers in, floats out."""
    proto = model(nodes, held, (8,), elem_type=TensorProto.INT64)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return proto


def test_every_row_of_a_table_is_looked_up():
    """One row of a thousand is wrong, and hardly a trial asks for it."""
    table = np.random.default_rng(1).normal(size=(1000, 16)).astype(np.float32)
    nodes = [N("Gather", ["table", "x"], ["g"]), N("Mul", ["g", "four"], ["y"])]
    original = looking_up(nodes, [tensor("table", table), tensor("four", 4.0)])
    right = table * 4
    wrong = right.copy()
    wrong[777] += 1
    for numbers, verdict in ((right, "equal"), (wrong, "different")):
        other = looking_up([N("Gather", ["table", "x"], ["y"])], [tensor("table", numbers)])
        assert bnfold.verify(original, other).verdict == verdict


def test_texts_are_compared_as_they_are():
    """A segment of text is no number: right and wrong ones are told apart, without a crash."""
    first = model([N("Identity", ["x"], ["a"]), N("Concat", ["a", "k"], ["y"], axis=0)], [], (2,))
    second = model([N("Concat", ["x", "k"], ["y"], axis=0)], [], (2,))
    third = model([N("Concat", ["k", "x"], ["y"], axis=0)], [], (2,))
    for proto in (first, second, third):
        proto.graph.initializer.append(helper.make_tensor("k", TensorProto.STRING, [2], [b"p", b"q"]))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = TensorProto.STRING
    assert bnfold.verify(first, second).verdict == "equal"
    assert bnfold.verify(first, third).verdict == "different"


def counted(layers: int, *, is_folded: bool) -> ModelProto:
    """Layers of Conv, BatchNormalization, Relu whose values are called v0, v1, ... as they come."""
    rng = np.random.default_rng(3)
    s, t = folded_parameters()
    nodes: list[Any] = []
    constants = list(batchnorm_parameters(4))
    names = iter(f"v{i}" for i in range(3 * layers))
    value = "x"
    for layer in range(layers):
        numbers = rng.normal(size=(4, 4 if layer else 3, 3, 3)).astype(np.float32) / 4
        here, w = next(names), f"w{layer}"
        constants.append(tensor(w, numbers * s.reshape(-1, 1, 1, 1) if is_folded else numbers))
        constants += [tensor(f"t{layer}", t)] if is_folded else []
        nodes.append(N("Conv", [value, w, f"t{layer}"] if is_folded else [value, w], [here], **PADDED))
        if not is_folded:
            value, here = here, next(names)
            nodes.append(N("BatchNormalization", [value, "gamma", "beta", "mean", "var"], [here]))
        value = "y" if layer == layers - 1 else next(names)
        nodes.append(N("Relu", [here], [value]))
    return model(nodes, constants, (1, 3, 16, 16))


def test_names_that_count_on_are_no_names_in_common():
    """An exporter numbered the values, with and without BatchNormalization: judged by the outputs, and equal."""
    original, other = counted(6, is_folded=False), counted(6, is_folded=True)
    found = bnfold.verify(original, other)
    assert (found.verdict, found.runs[0].coverage) == ("equal", "end to end")
    wrong = ModelProto.FromString(other.SerializeToString())
    bias = next(t for t in wrong.graph.initializer if t.name == "t3")
    bias.CopyFrom(tensor("t3", initializer(other, "t3") + np.float32([0, 0, 1e-3, 0])))
    assert bnfold.verify(original, wrong).verdict == "different"


def numbered(proto: ModelProto) -> ModelProto:
    """The model with its inner values called by numbers, in the order in which they come."""
    copy = ModelProto.FromString(proto.SerializeToString())
    names = {output: f"{i}" for i, node in enumerate(copy.graph.node) for output in node.output[:1]}
    names |= {value.name: value.name for value in copy.graph.output}
    for node in copy.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del copy.graph.value_info[:]
    return copy


def test_numbers_that_stand_for_other_convolutions_are_no_names():
    """Of a network of nothing but convolutions, most sites would be wrong, and no output is: the outputs decide."""
    original = onnx.load(MODELS / "repvgg_a0.onnx")
    other = numbered(bnfold.fold(original, verify=False).model)
    found = bnfold.verify(numbered(original), other, threads=1)
    assert (found.verdict, found.runs[0].coverage) == ("equal", "end to end")
    weights = next(t for t in other.graph.initializer if len(t.dims) == 4)
    weights.CopyFrom(tensor(weights.name, initializer(other, weights.name) * np.float32(1.01)))
    assert bnfold.verify(numbered(original), other, threads=1).verdict == "different"


def test_the_named_map_of_a_matrix_product_is_its_own():
    """Tokens are no maps: what a MatMul of three axes makes wrong has no map that another axis would name."""
    rng = np.random.default_rng(4)
    matrix, s = rng.normal(size=(1, 16, 8)), rng.uniform(0.5, 2, 8)
    wrong = matrix * s
    wrong[..., 5] *= 1.01
    nodes = [N("MatMul", ["x", "a"], ["m"]), N("Mul", ["m", "s"], ["y"])]
    original = model(nodes, [tensor("a", matrix), tensor("s", s)], (2, 10, 16))
    found = bnfold.verify(original, model([N("MatMul", ["x", "a"], ["y"])], [tensor("a", wrong)], (2, 10, 16)))
    assert found.verdict == "different"
    assert found.blame.map in (5, None)


@pytest.mark.parametrize("op", ["LeakyRelu", "Elu"])
def test_steep_activations_are_steep(op):
    """Alpha of 1000: what rounding did before it is a thousand times as large behind."""
    s, t = folded_parameters()
    shift = np.float32(3000)
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"], **PADDED),
        N("BatchNormalization", ["c", "gamma", "beta", "shifted", "var"], ["n"]),
        N(op, ["n"], ["y"], alpha=1000.0),
    ]
    parameters = batchnorm_parameters(4)
    mean = initializer(model(nodes, parameters), "mean")
    bias, shifted = np.full(4, shift, np.float32), (mean + shift).astype(np.float32)
    original = model(nodes, [tensor("w", weight()), tensor("b", bias), tensor("shifted", shifted), *parameters])
    kept = np.float32(s) * (bias - shifted) + np.float32(t + s * mean)
    constants = [tensor("v", weight() * np.float32(s).reshape(-1, 1, 1, 1)), tensor("t", kept)]
    other = model([N("Conv", ["x", "v", "t"], ["m"], **PADDED), N(op, ["m"], ["y"], alpha=1000.0)], constants)
    assert bnfold.verify(original, other).verdict == "equal"


def test_an_evaluator_that_reads_a_loop_otherwise_excuses_nothing():
    """Two inputs of a Loop's body change places: whatever float64 makes of that, onnxruntime runs another model."""

    def looping(*names: str) -> ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        counter = helper.make_tensor_value_info("i", TensorProto.INT64, [])
        going = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
        ends = [helper.make_tensor_value_info("gone", TensorProto.BOOL, [])]
        ends += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("po", "qo")]
        steps = [N("Identity", ["go"], ["gone"]), N("Add", ["p", "q"], ["po"]), N("Mul", ["p", "half"], ["qo"])]
        body = helper.make_graph(steps, "body", [counter, going, *values], ends)
        nodes = [
            N("Conv", ["x", "w"], ["c"], **PADDED),
            N("Sigmoid", ["c"], ["s"]),
            N("Loop", ["turns", "", "c", "s"], ["y", "rest"], body=body),
        ]
        return model(nodes, [tensor("w", weight()), tensor("turns", 3, np.int64), tensor("half", 0.5)])

    assert bnfold.verify(looping("p", "q"), looping("p", "q")).verdict == "equal"
    assert bnfold.verify(looping("p", "q"), looping("q", "p")).verdict == "different"


def test_a_name_that_stands_for_a_moved_value_is_no_fault():
    """MatMul, Reshape, Transpose, BatchNormalization: a Gemm in front keeps the MatMul's name."""
    s, t = folded_parameters()
    matrix = np.random.default_rng(5).normal(size=(16, 4)).astype(np.float32)
    moves = [N("Reshape", ["m", "shape"], ["r"])]
    back = N("Transpose", ["r"], ["q"], perm=[0, 3, 1, 2])
    parameters = ["gamma", "beta", "mean", "var"]
    nodes = [N("MatMul", ["x", "a"], ["m"]), *moves, back, N("BatchNormalization", ["q", *parameters], ["y"])]
    shape = tensor("shape", [1, 2, 3, 4], np.int64)
    original = model(nodes, [tensor("a", matrix), shape, *batchnorm_parameters(4)], (6, 16))
    last = N("Transpose", ["r"], ["y"], perm=[0, 3, 1, 2])
    for factor, verdict in ((1.0, "equal"), (1.001, "different")):
        held = [tensor("a", matrix * (s * [1, factor, 1, 1])), tensor("t", t), shape]
        other = model([N("Gemm", ["x", "a", "t"], ["m"]), *moves, last], held, (6, 16))
        assert bnfold.verify(original, other).verdict == verdict
