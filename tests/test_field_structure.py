"""The survey's numbered cases: that each has a test, and those that had none.

`tests/field_cases.toml` says for every case which test proves it; the tests here carry the case's number. x is
(1, 4, 8, 8) and a Conv is 3x3 with pads 1 unless the case says otherwise.
"""

import functools
import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.conftest import assert_same_outputs, ops, run, tensor
from tests.folding import check, fold, graph
from tests.test_cases import NO_KERNEL

TESTS = Path(__file__).parent
LEDGER = tomllib.loads((TESTS / "field_cases.toml").read_text())

X = (1, 4, 8, 8)
W = {"w": (4, 4, 3, 3)}
SCALE = {"k": (4,), "h": (4,)}
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\n"
BN = "y = BN <maps = 4> (c)"


@pytest.mark.parametrize("group", LEDGER)
def test_every_case_has_its_test(group):
    """Each test that the ledger names is there: a file of tests/cases, a function, or its parameter."""
    assert all(LEDGER[group].values())
    named = [(case, test) for case, tests in LEDGER[group].items() for test in tests]
    assert [entry for entry in named if not is_there(entry[1])] == []


def is_there(test):
    """Whether there is a test of that name, with a parameter that is spelled out in its file."""
    file, name, parameter = re.fullmatch(r"(\w+)(?:::|/)(\w+)(?:\[([^]]+)\])?", test).groups()
    if file == "cases":
        return (TESTS / "cases" / f"{name}.txt").exists()
    text = source_of(file)
    return f"\ndef {name}(" in text and (parameter is None or f'"{parameter}"' in text)


@functools.cache
def source_of(module):
    """The text of a test module; empty where there is none."""
    path = TESTS / f"{module}.py"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("group", "numbers"),
    [
        ("sharing", (21, 30)), ("refuse", (31, 54)), ("numerics", (55, 69)), ("structure", (70, 87)),
        ("verification", (88, 98)),
    ],
)  # fmt: skip
def test_the_ledger_is_complete(group, numbers):
    """Every number of the group is in the ledger, once and in order."""
    first, last = numbers
    assert [int(case.split()[0]) for case in LEDGER[group]] == list(range(first, last + 1))


# Must refuse


@pytest.mark.parametrize("given", ["path", "proto"])
@pytest.mark.parametrize("case", [35, 36, 37])
def test_35_36_37_training_statistics(case, given, tmp_path):
    """Unused, public, or one output alone (no runtime loads that): left, and with verification on nothing is run."""
    outputs = {35: ("y",), 36: ("y", "rm", "rv"), 37: ("y",)}[case]
    made = "y" if case == 37 else "y, rm, rv"
    text = CONV + f"{made} = BatchNormalization <training_mode = 1> (c, g, h, m, v)"
    numbers = {"g": (4,), "h": (4,), "m": (4,), "v": np.ones(4)}
    proto = graph(text, X, outputs=outputs, y=X, **W, **numbers)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(proto, source)
    result = bnfold.fold(source if given == "path" else proto, target)
    assert [site.code for site in result.refused] == ["training-mode"]
    assert (result.folded, result.verification) == ((), None)
    assert target.read_bytes() == source.read_bytes()


# Structure, files


def test_74_unregistered_operator_of_the_default_domain(tmp_path):
    """No runtime loads the model: folded, not verified, written only where that is allowed, and then whole."""
    proto = graph(CONV + BN, X, **W)
    proto.graph.node[1].output[0] = "d"
    proto.graph.node.append(helper.make_node("BatchedNMS_TRT", ["d"], ["y"], name="nms"))
    with pytest.raises(bnfold.NotVerified, match="BatchedNMS_TRT"):
        bnfold.fold(proto, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
    result = bnfold.fold(proto, tmp_path / "out.onnx", allow_unverified=True)
    found = onnx.load(tmp_path / "out.onnx")
    assert len(result.folded) == 1
    assert ops(found) == ["Conv", "BatchedNMS_TRT"]
    assert found.graph.node[1] == proto.graph.node[2]


def test_77_nodes_of_one_name_before_and_after_one_without():
    """Three nodes called `n` (no runtime takes that), one called nothing: all fold, each Conv keeps its name."""
    text = "a = Conv (x, w)\nb = BN <maps = 4> (a)\nc = Conv (b, w)\ny = BN <maps = 4> (c)"
    proto = graph(text, X, **W)
    for node in proto.graph.node[:3]:
        node.name = "n"
    found = check(proto, folded=2, nodes="Conv Conv", runs=False).model
    assert [node.name for node in found.graph.node] == ["n", "n"]


def loop(state, **scan):
    """A Loop of three rounds around a value, or a Scan over the rows of one."""
    value = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    body = [helper.make_node("Neg", ["s"], ["n"])]
    outs = [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)]
    if scan:
        inner = helper.make_graph(body, "body", [value], outs)
        return helper.make_node("Scan", [state], ["z"], body=inner, num_scan_inputs=1)
    flags = [
        helper.make_tensor_value_info(*entry)
        for entry in (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []))
    ]
    body.append(helper.make_node("Identity", ["go"], ["on"]))
    outs = [helper.make_tensor_value_info("on", TensorProto.BOOL, []), *outs]
    return helper.make_node(
        "Loop", ["times", "", state], ["z"], body=helper.make_graph(body, "l", [*flags, value], outs)
    )


@pytest.mark.parametrize("kind", ["loop", "scan"])
@pytest.mark.parametrize("public", [False, True])
def test_86_output_feeds_a_loop(kind, public):
    """The map's output starts a Loop or is scanned: it folds upstream, and the Loop's node stays as it was."""
    proto = graph(CONV + BN, X, outputs=("y", "z") if public else ("z",), times=np.array(3), **W)
    proto.graph.node.append(loop("y", **({"scan": 1} if kind == "scan" else {})))
    if public:
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, X))
    found = fold(proto).model
    assert ops(found) == ["Conv", "Loop" if kind == "loop" else "Scan"]
    assert found.graph.node[1] == proto.graph.node[2]
    assert_same_outputs(proto, found, 4e-6)


@pytest.mark.parametrize("op", ["Mul", "BatchNormalization"])
def test_86_a_map_of_what_a_loop_makes_stays(op):
    """What a Loop carries out has no constants upstream."""
    proto = graph(
        "y = Mul (z, k)" if op == "Mul" else "y = BN <maps = 4> (z)", X, times=np.array(3), k=(4, 1, 1), y=X
    )
    proto.graph.node.insert(0, loop("x"))
    proto.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, X))
    check(proto, folded=0, left=["no-producer", "producer-cannot-absorb"], runs=False, sources="all")


def maps(count):
    """Parameters g, h, m, v of `count` maps, each as large as it is told."""
    values = {"g": 2.0, "h": 1.0, "m": 0.5, "v": 1.0}
    return {name: tensor(name, np.full(count, value)) for name, value in values.items()}


EMPTY = {
    # what is empty: text, tensors, x
    "kernel": ("c = Conv (x, w)\n", {"w": (4, 4, 0, 0)}, X, 4),
    "maps of a Conv": ("c = Conv (x, w)\n", {"w": (0, 4, 3, 3)}, X, 0),
    "maps of its input": ("c = Conv (x, w)\n", {"w": (4, 0, 3, 3)}, (1, 0, 8, 8), 4),
    "batch": ("c = Conv (x, w)\n", {"w": (4, 4, 3, 3)}, (0, 4, 8, 8), 4),
    "columns": ("c = Gemm (x, w)\n", {"w": (4, 0)}, (3, 4), 0),
    "rows": ("c = Gemm (x, w)\n", {"w": (0, 4)}, (3, 0), 4),
    "columns of a MatMul": ("c = MatMul (x, w)\n", {"w": (4, 0)}, (3, 4), 0),
    "weight of a ConvTranspose": ("c = ConvTranspose (x, w)\n", {"w": (4, 0, 3, 3)}, X, 0),
}


@pytest.mark.parametrize("case", EMPTY)
def test_87_nothing_in_it(case):
    """No taps, no maps, no rows: folded or left with a reason, never a crash; what runs, runs the same."""
    text, tensors, x, count = EMPTY[case]
    proto = graph(text + "y = BatchNormalization (c, g, h, m, v)", x, y=None, **tensors, **maps(count))
    result = fold(proto)
    assert len(result.folded) + len(result.refused) == 1
    assert all(site.message for site in result.refused)
    feeds = {"x": np.ones(x, np.float32)}
    try:
        expected = run(proto, feeds)[0]
    except NO_KERNEL:
        return
    found = run(result.model, feeds)[0]
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# Rows of the tools' table that had no test from end to end: nodes, tensors, what else graph() takes, operators left

ROWS = {
    "conv_mul_scalar_0": (CONV + "y = Mul (c, k)", W | {"k": np.array(2.5)}, {}, "Conv"),
    "weight_behind_transpose": (
        "w = Transpose <perm = [1, 0, 2, 3]> (u)\n" + CONV + BN, {"u": (4, 4, 3, 3)}, {}, "Conv"),
    "weight_behind_cast": (
        "w = Cast <to = 1> (u)\n" + CONV + BN, {"u": tensor("u", np.ones((4, 4, 3, 3)) / 3, np.float64)}, {}, "Conv"),
    "gemm_mul_add": ("c = Gemm (x, w)\nm = Mul (c, k)\ny = Add (m, h)", {"w": (4, 4)} | SCALE, {"x": (3, 4)}, "Gemm"),
    "matmul_mul_add": (
        "c = MatMul (x, w)\nm = Mul (c, k)\ny = Add (m, h)", {"w": (4, 4)} | SCALE, {"x": (3, 4)}, "Gemm"),
    "average_pool": (
        CONV + "p = AveragePool <kernel_shape = [2, 2]> (c)\ny = BN <maps = 4> (p)", W, {}, "Conv AveragePool"),
    "reshape": (CONV + "p = Reshape (c, s)\ny = BN <maps = 4> (p)", W | {"s": np.array([0, 4, -1])}, {},
                "Conv Reshape"),
    "squeeze": ("c = Conv (x, w)\np = Squeeze (c, s)\ny = BN <maps = 4> (p)",
                {"w": (4, 4, 8, 1), "s": np.array([2])}, {}, "Conv Squeeze"),
    "pad_reflect": (
        CONV + 'p = Pad <mode = "reflect"> (c, s)\ny = BN <maps = 4> (p)',
        W | {"s": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, {}, "Conv Pad"),
    "neg": (CONV + "n = Neg (c)\ny = BN <maps = 4> (n)", W, {}, "Conv"),
    "split": (
        CONV + "a, b = Split <axis = 1> (c, s)\ny = BN <maps = 2> (a)\nz = BN <maps = 2> (b)",
        W | {"s": np.array([2, 2])}, {"outputs": ("y", "z")}, "Conv Split"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a1_folds(name):
    """What stands between Conv and map, or between a tensor and its reader, in one graph each."""
    text, tensors, more, nodes = ROWS[name]
    count = text.count("BN ") + (name == "neg") or 1
    check(graph(text, **({"x": X} | more), **tensors), folded=count, nodes=nodes, limit=4e-6)


def test_a1_weight_behind_a_cast_that_enlarges_stays():
    """float16 numbers that a Cast makes float32 would take twice the room: left, and byte for byte."""
    held = {"u": tensor("u", np.ones((4, 4, 3, 3)), np.float16)}
    check(graph("w = Cast <to = 1> (u)\n" + CONV + BN, X, **held), folded=0, left=["would-grow"])


def test_a1_zeros_of_a_pad_have_no_shift():
    """Conv -> Pad with zeros -> BatchNormalization: scale passes, shift does not."""
    sizes = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    text = CONV + "p = Pad (c, s)\ny = {} (p"
    check(graph(text.format("BN <maps = 4>") + ")", X, **W, s=sizes), folded=0, left=["shift-meets-padding"])
    plain = {"g": (4,), "h": np.zeros(4), "v": np.ones(4)}
    proto = graph(text.format("BatchNormalization") + ", g, h, h, v)", X, **W, s=sizes, **plain)
    check(proto, nodes="Conv Pad", limit=4e-6)
