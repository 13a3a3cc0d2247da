"""Outputs behind operators that decide: rounding may turn what lies next to a boundary, and nothing else."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.graph import GraphFacts
from bnfold.verification import VerifyOptions
from bnfold.verification.decisions import decided, decision_behind
from bnfold.verification.judge import verify_pair
from tests.conftest import model, tensor

MAPS = 8
N = helper.make_node


def judged(original, folded, **options):
    """The run of one provider, for two models in memory."""
    return verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions(**options)).runs[0]


def layer(i: int):
    """q -> DequantizeLinear -> Conv -> BatchNormalization -> QuantizeLinear -> the next q."""
    return [
        N("DequantizeLinear", [f"q{i}", f"step{i}", "zero"], [f"d{i}"]),
        N("Conv", [f"d{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
        N("BatchNormalization", [f"c{i}", "gamma", "beta", "mean", "var"], [f"n{i}"]),
        N("QuantizeLinear", [f"n{i}", f"step{i + 1}", "zero"], [f"q{i + 1}"]),
    ]


def quantised(kind, count: int, *tail, outputs=("y",)):
    """Layers of integers, dequantised at the end unless `tail` is given.

    What is quantised is a whole number of 24ths of a step, so many elements are ties that rounding turns.
    """
    rng = np.random.default_rng(0)
    steps = [np.float32(1 / 16)]
    for _ in range(count):
        steps.append(np.float32(steps[-1] * (0.7 / np.sqrt(np.float32(1.3) + 1e-5)) * 0.75))
    held = [tensor("zero", 128 if kind is np.uint8 else 0, kind)]
    held += [tensor(f"step{i}", step) for i, step in enumerate(steps)]
    held += [tensor(f"w{i}", rng.integers(-4, 5, (MAPS, MAPS, 3, 3)) / 32) for i in range(count)]
    numbers = {"gamma": 0.7, "beta": 0.0, "mean": 0.0, "var": 1.3}
    held += [tensor(name, np.full(MAPS, number)) for name, number in numbers.items()]
    nodes = [N("QuantizeLinear", ["x", "step0", "zero"], ["q0"])]
    nodes += [node for i in range(count) for node in layer(i)]
    nodes += tail or [N("DequantizeLinear", [f"q{count}", f"step{count}", "zero"], ["y"])]
    return model(nodes, held, (1, MAPS, 12, 12), outputs=outputs)


def with_weight(proto, name: str, change):
    """A copy in which a weight is change(array)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    held = next(t for t in copy.graph.initializer if t.name == name)
    held.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(held).copy()), name))
    return copy


def slightly_wrong(array):
    """One map larger by a ten-thousandth."""
    array[2] *= np.float32(1.0001)
    return array


def renamed(proto):
    """A copy in which every value inside has another name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = {v.name for v in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer)}
    for node in copy.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if not name or name in kept else f"other_{name}" for name in names]
    return copy


@pytest.fixture(scope="module", params=[np.uint8, np.int8], ids=["uint8", "int8"])
def six(request):
    """Six layers, and what bnfold makes of them."""
    original = quantised(request.param, 6)
    return original, bnfold.fold(original, verify=False).model


def test_six_quantised_layers_are_equal_site_by_site(six):
    """Turned steps move the output by a hundredth of its scale and more; each of the six folds is right by itself."""
    original, folded = six
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    run = judged(original, folded)
    assert (run.verdict, run.coverage) == ("equal", "sites")
    assert [site.value for site in run.sites] == [f"n{i}" for i in range(6)]
    assert run.outputs[0].relative > 0.01


def test_a_wrong_layer_between_quantisations_is_named(six):
    """One map of the fourth Conv off by 1e-4, far less than a step: different, with value and map."""
    original, folded = six
    run = judged(original, with_weight(folded, "w3_folded", slightly_wrong))
    assert run.verdict == "different"
    wrong = [site for site in run.sites if site.wrong]
    assert [(site.value, site.map) for site in wrong] == [("n3", 2)]


def test_quantised_layers_under_other_names_are_paired(six):
    """No name inside is shared: what the discontinuous operators read and make is, so each fold is still judged."""
    original, folded = six
    run = judged(original, renamed(folded))
    assert (run.verdict, run.coverage, len(run.sites)) == ("equal", "sites", 6)
    wrong = renamed(with_weight(folded, "w3_folded", lambda w: w * np.float32(1.01)))
    run = judged(original, wrong)
    assert (run.verdict, run.coverage) == ("different", "end to end")


def with_quantised_weights(proto):
    """A copy in which each weight is int8, dequantised by a scale for each map."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    rng = np.random.default_rng(1)
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.initializer.extend(t for t in proto.graph.initializer if t.name[0] != "w")
    for node in proto.graph.node:
        if node.op_type == "Conv":
            w = node.input[1]
            copy.graph.initializer.append(tensor(f"{w}_q", rng.integers(-100, 100, (MAPS, MAPS, 3, 3)), np.int8))
            copy.graph.initializer.append(tensor(f"{w}_scale", np.full(MAPS, 1 / 2048)))
            copy.graph.node.append(N("DequantizeLinear", [f"{w}_q", f"{w}_scale"], [w], axis=0))
        copy.graph.node.append(node)
    return copy


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_weights_are_judged_by_their_scales(kind):
    """bnfold folds into the scale of each map: equal site by site; one scale off by 1e-4 is named."""
    original = with_quantised_weights(quantised(kind, 6))
    folded = bnfold.fold(original, verify=False).model
    run = judged(original, folded)
    assert (run.verdict, run.coverage, len(run.sites)) == ("equal", "sites", 6)
    assert judged(original, renamed(folded)).coverage == "sites"
    scale = next(t.name for t in folded.graph.initializer if t.name.startswith("w3_scale"))
    run = judged(original, with_weight(folded, scale, slightly_wrong))
    assert [(site.value, site.map) for site in run.sites if site.wrong] == [("n3", 2)]


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("end", ["step", "truth", "shape"])
def test_whole_numbers_that_turn_are_no_difference_where_sites_are_equal(kind, end):
    """Steps, truth values, even how many elements there are: turned by rounding, behind a fold that is right."""
    tails = {
        "step": [N("Identity", ["q1"], ["y"])],
        "truth": [N("Greater", ["n0", "step1"], ["y"])],
        "shape": [N("Greater", ["n0", "step1"], ["g"]), N("NonZero", ["g"], ["y"])],
    }
    original = quantised(kind, 1, *tails[end])
    dtype = np.dtype({"step": kind, "truth": np.bool_, "shape": np.int64}[end])
    original.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    folded = bnfold.fold(original, verify=False).model
    run = judged(original, folded)
    assert (run.verdict, run.coverage) == ("equal", "sites")
    assert run.outputs[0].turned > 0
    assert "turned" in run.reason
    run = judged(original, with_weight(folded, "w0_folded", slightly_wrong))
    assert run.verdict == "different"


def deciding(by, op: str):
    """x of whole numbers -> times `by` -> v -> an operator that decides -> y; 0.7 makes many halves."""
    held = [tensor("by", by), tensor("half", 3.5), tensor("zero", 0.0), tensor("one", 1.0)]
    held += [tensor("k", [1], np.int64), tensor("flat", [-1], np.int64)]
    nodes = [N("Cast", ["x"], ["f"], to=TensorProto.FLOAT), N("Mul", ["f", "by"], ["v"])]
    pair = [N("Mul", ["v", "zero"], ["n"]), N("Add", ["n", "half"], ["h"]), N("Concat", ["v", "h"], ["p"], axis=1)]
    ends = {
        "Round": ([N("Round", ["v"], ["y"])], TensorProto.FLOAT),
        "Floor": ([N("Floor", ["v"], ["y"])], TensorProto.FLOAT),
        "Ceil": ([N("Neg", ["v"], ["m"]), N("Ceil", ["m"], ["y"])], TensorProto.FLOAT),
        "Cast": ([N("Cast", ["v"], ["y"], to=TensorProto.INT32)], TensorProto.INT32),
        "Cast to bool": (
            [N("Sub", ["v", "half"], ["d"]), N("Relu", ["d"], ["r"]), N("Cast", ["r"], ["y"], to=TensorProto.BOOL)],
            TensorProto.BOOL,
        ),
        "GreaterOrEqual": ([N("GreaterOrEqual", ["v", "half"], ["y"])], TensorProto.BOOL),
        "Less": ([N("Less", ["v", "half"], ["l"]), N("Cast", ["l"], ["y"], to=TensorProto.INT64)], TensorProto.INT64),
        "Where": ([N("Less", ["v", "half"], ["l"]), N("Where", ["l", "f", "zero"], ["y"])], TensorProto.FLOAT),
        "QuantizeLinear": (
            [N("QuantizeLinear", ["v", "one"], ["q"]), N("DequantizeLinear", ["q", "one"], ["e"]),
             N("Reshape", ["e", "flat"], ["y"])],
            TensorProto.FLOAT,
        ),
        "ArgMax": ([*pair, N("ArgMax", ["p"], ["y"], axis=1)], TensorProto.INT64),
        "ArgMin": ([*pair, N("ArgMin", ["p"], ["a"], axis=1, keepdims=0), N("Identity", ["a"], ["y"])],
                   TensorProto.INT64),
        "TopK": ([*pair, N("TopK", ["p", "k"], ["t", "y"], axis=1)], TensorProto.INT64),
    }  # fmt: skip
    end, kind = ends[op]
    proto = model([*nodes, *end], held, (1, 1, 32, 32), elem_type=TensorProto.INT32)
    proto.graph.output[0].type.tensor_type.elem_type = kind
    return proto


DECIDERS = [
    "Round", "Floor", "Ceil", "Cast", "Cast to bool", "GreaterOrEqual", "Less", "Where", "QuantizeLinear", "ArgMax",
    "ArgMin", "TopK",
]  # fmt: skip


def unpaired(by, op: str):
    """The same under other names, with one more decision, of what is whole already, so that they do not pair."""
    proto = renamed(deciding(by, op))
    proto.graph.node[1].input[0] = "whole"
    proto.graph.node.insert(1, N("Round", ["other_f"], ["whole"]))
    return proto


@pytest.mark.parametrize("op", DECIDERS)
def test_decisions_turn_only_next_to_a_boundary(op):
    """A factor off by two ulps turns exact ties, and is equal; elements that are decided far off are different."""
    original = deciding(np.float32(0.7), op)
    sign = 1 if op in ("Cast to bool", "ArgMin") else -1
    run = judged(original, unpaired(np.float32(0.7 * (1 + sign * 2**-22)), op))
    assert (run.verdict, run.coverage) == ("equal", "end to end")
    assert run.outputs[0].turned > 0
    assert "turned" in run.reason
    by = np.full((1, 1, 32, 32), 0.7, np.float32)
    by[0, 0, 5] = 0
    run = judged(original, unpaired(by, op))
    assert run.verdict == "different"
    assert "far from where the decision turns" in run.reason


def test_a_turn_of_more_than_one_step_is_different():
    """Twice Round: an element next to a boundary may become the next whole number, not the one after it."""
    original = deciding(np.float32(0.7), "Round")
    doubled = unpaired(np.float32(0.7 * (1 - 2**-22)), "Round")
    doubled.graph.node[-1].output[0] = "r"
    doubled.graph.node.extend([N("Sub", ["r", "other_v"], ["off"]), N("Round", ["off"], ["more"])])
    doubled.graph.node.extend([N("Abs", ["off"], ["far"]), N("GreaterOrEqual", ["far", "nearly"], ["tie"])])
    doubled.graph.node.extend([N("Cast", ["tie"], ["two"], to=1), N("Sub", ["r", "two"], ["y"])])
    doubled.graph.initializer.append(tensor("nearly", 0.49))
    run = judged(original, doubled)
    assert run.verdict == "different"
    assert "far from where the decision turns" in run.reason


def test_which_decision_an_output_comes_from():
    """The nearest one upstream that is not only a Cast of something decided, through what keeps elements apart."""
    nodes = [
        N("Round", ["x"], ["r"]), N("Cast", ["r"], ["i"], to=TensorProto.INT32), N("Flatten", ["i"], ["kept"]),
        N("Cast", ["x"], ["cast"], to=TensorProto.INT32), N("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        N("ReduceMean", ["r"], ["mean"]), N("Relu", ["x"], ["plain"]), N("TopK", ["x", "k"], ["top", "which"]),
    ]  # fmt: skip
    names = ("kept", "cast", "half", "mean", "plain", "top", "which")
    facts = GraphFacts(model(nodes, [tensor("k", [1], np.int64)], (2, 3), outputs=names))
    found = {name: decision_behind(facts, name) for name in names}
    assert {name: facts.op(d.node) for name, d in found.items() if d} == {
        "kept": "Round", "cast": "Cast", "which": "TopK"
    }  # fmt: skip
    assert len(found["kept"].tail) == 2
    behind = decided(facts, names)
    assert [name for name in names if not behind[name]] == ["plain"]


@pytest.mark.parametrize("wrong", [0, 1])
def test_two_values_are_never_paired_with_one(wrong):
    """The original decides one value twice, the other model two values, one of them wrong: never taken for one."""
    held = [tensor("by", 0.7), tensor("other", 0.9)]
    ends = [N("Identity", ["r0"], ["y"]), N("Identity", ["r1"], ["z"])]
    first = [N("Mul", ["x", "by"], ["v"]), N("Round", ["v"], ["r0"]), N("Round", ["v"], ["r1"])]
    second = [N("Mul", ["x", "other" if wrong == i else "by"], [f"v{i}"]) for i in range(2)]
    second += [N("Round", [f"v{i}"], [f"r{i}"]) for i in range(2)]
    original = model([*first, *ends], held, (1, 64), outputs=("y", "z"))
    for folded in ([*second, *ends], [*second[::-1], *ends]):
        proto = renamed(model(folded, held, (1, 64), outputs=("y", "z")))
        assert judged(original, proto).verdict == "different"
