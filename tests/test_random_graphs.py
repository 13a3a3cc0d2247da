"""A few hundred random graphs, and proof that the check would notice a wrong fold. `tools/fuzz.py` runs many more."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from tests.conftest import conv_bn
from tests.random_graphs import Wrong, check, random_model, random_options
from tests.random_graphs.judge import judge
from tests.random_graphs.reduce import reduced
from tests.scopes import scopes

SEED, EXAMPLES, BATCHES = 20, 480, 8
SIZES = {"x": (2, 3, 9, 9)}


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_graphs(batch):
    """Whatever folds, folds right: values by name, interface, costs, a second fold, another order of the nodes."""
    skipped = 0
    for index in range(batch, EXAMPLES, BATCHES):
        rng = np.random.default_rng([SEED, index])
        example = random_model(rng)
        options = random_options(rng)
        try:
            skipped += bool(check(example.proto, example.sizes, rng, **options).skipped)
        except Wrong as problem:
            pytest.fail(f"python tools/fuzz.py --graphs --seed {SEED} --example {index}: {problem}")
    assert skipped <= EXAMPLES / BATCHES / 10


def test_generator():
    """The same seed makes the same model; every source, absorber and carrier occurs, and onnx finds them valid."""
    seen: Counter[str] = Counter()
    shapeless = deepest = 0
    for index in range(800):
        proto = random_model(np.random.default_rng([SEED, index])).proto
        assert proto == random_model(np.random.default_rng([SEED, index])).proto
        for scope in scopes(proto):
            seen.update({node.op_type for node in scope.nodes})
            deepest = max(deepest, len(scope.path))
        if any(not value.type.tensor_type.HasField("shape") for value in (*proto.graph.input, *proto.graph.output)):
            shapeless += 1  # legal, but not to the checker
        else:
            onnx.checker.check_model(proto, full_check=True)
    assert shapeless < 50
    wanted = """BatchNormalization Mul Add Sub Div Neg Sum Conv ConvTranspose Gemm MatMul DequantizeLinear Identity
        Dropout Transpose Squeeze Unsqueeze Expand Tile Reshape Flatten Concat Split Slice Gather Pad AveragePool
        MaxPool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax Relu LeakyRelu PRelu Resize Upsample
        DepthToSpace SpaceToDepth Clip Sigmoid HardSwish Cast If Loop Scan"""
    assert set(wanted.split()) <= seen.keys()
    assert deepest >= 4


# The check itself ---------------------------------------------------------------------------------------------------


def pair() -> tuple[ModelProto, ModelProto]:
    """A model with a second output and a value by the way, and its fold."""
    proto = conv_bn((4, 3, 3, 3), bias=True, x=SIZES["x"])
    proto.graph.node.append(helper.make_node("Relu", ["y"], ["r"], name="relu"))
    proto.graph.node.append(helper.make_node("Neg", ["r"], ["z"], name="neg"))
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 4, 7, 7]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4, 7, 7]))
    return proto, bnfold.fold(proto, verify=False).model


def perturb_bias(folded: ModelProto) -> None:
    """One bias is off by a little."""
    _add(folded, folded.graph.node[0].input[2], 1e-4)


def perturb_weight(folded: ModelProto) -> None:
    """One weight is off by a little."""
    _add(folded, folded.graph.node[0].input[1], 3e-5)


def swap_outputs(folded: ModelProto) -> None:
    """Two outputs have changed places."""
    outputs = list(folded.graph.output)
    del folded.graph.output[:]
    folded.graph.output.extend(reversed(outputs))


def free_a_dimension(folded: ModelProto) -> None:
    """The declared shape of an output has changed."""
    folded.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"


def reuse_a_name(folded: ModelProto) -> None:
    """A value keeps its name, and its contents change: r = Neg(y), z = Relu(r), both undone by no output."""
    del folded.graph.output[1:]
    folded.graph.node[1].op_type, folded.graph.node[2].op_type = "Neg", "Relu"


def leave_an_orphan(folded: ModelProto) -> None:
    """A constant that nothing reads is left behind."""
    folded.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "left"))


def insert_a_node(folded: ModelProto) -> None:
    """One more node lies on the path."""
    folded.graph.node[2].input[0] = "detour"
    folded.graph.node.insert(2, helper.make_node("Identity", ["r"], ["detour"]))
    folded.graph.node.insert(2, helper.make_node("Identity", ["r"], ["dead"]))


def _add(model: ModelProto, name: str, share: float) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] += share * np.abs(array).max()
    tensor.CopyFrom(numpy_helper.from_array(array, name))


DAMAGE = {
    perturb_bias: "values", perturb_weight: "values", swap_outputs: "interface", free_a_dimension: "interface",
    reuse_a_name: "names", leave_an_orphan: "orphans", insert_a_node: "costs",
}  # fmt: skip


def test_the_check_passes_a_right_fold():
    """And takes up a small part of what it allows."""
    assert judge(*pair(), SIZES, np.random.default_rng(0)) < 0.2


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_the_check_notices(damage):
    """Each damage is noticed, and called by its name."""
    proto, folded = pair()
    damage(folded)
    if damage is reuse_a_name:
        del proto.graph.output[1:]
    with pytest.raises(Wrong) as caught:
        judge(proto, folded, SIZES, np.random.default_rng(0))
    assert caught.value.kind == DAMAGE[damage]


def test_the_check_notices_wrong_arithmetic(wrong_fold):
    """A wrong fold inside bnfold fails the check, and the example can be made small: the pair alone is left."""
    proto, _ = pair()

    def fails(example):
        try:
            check(*example, np.random.default_rng(0))
        except Wrong as problem:
            return problem.kind == "values"
        return False

    assert fails((proto, SIZES))
    small, sizes = reduced(proto, SIZES, fails)
    assert [node.op_type for node in small.graph.node] == ["Conv", "BatchNormalization"]
    assert sizes == SIZES
