"""--clone-shared, --assume-range, --only and --exclude: what each allows, and what it costs."""

import ml_dtypes
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import bnfold
from tests.conftest import ops
from tests.folding import check, fold, graph

TWO = "[conv] c = Conv (x, w, b)\n[bn1] y = BN <maps = 5> (c)\n[bn2] z = BN <maps = 5> (c)"
W = {"w": (5, 4, 3, 3), "b": (5,)}


def test_one_conv_feeding_two_maps():
    """Left without the flag; with it there are two Conv, and the report says the cost."""
    proto = graph(TWO, **W, outputs=("y", "z"))
    result = check(proto, folded=0, left=["producer-shared"] * 2)
    assert "--clone-shared" in result.refused[0].help
    result = check(proto, folded=2, nodes="Conv Conv", limit=4e-6, clone_shared=True)
    notes = [note for site in result.folded for note in site.notes]
    assert len(notes) == 1
    assert "Conv 'conv' is cloned" in notes[0]
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == 2
    assert "conv" in names


def test_three_maps_need_two_clones():
    """The last one takes the original."""
    proto = graph(TWO + "\nu = BN <maps = 5> (c)", **W, outputs=("y", "z", "u"))
    result = check(proto, folded=3, nodes="Conv Conv Conv", limit=4e-6, clone_shared=True)
    assert sum("cloned" in note for site in result.folded for note in site.notes) == 2


@pytest.mark.parametrize("more", [None, "z = Relu (c)", "z = Add (c, x2)"], ids=["output", "relu", "add"])
def test_the_other_reader_keeps_the_original(more):
    """An output, or another operator, reads what the Conv makes: that value stays bit by bit."""
    text = "[conv] c = Conv (x, w, b)\n[bn] y = BN <maps = 5> (c)" + (f"\n{more}" if more else "")
    inputs = {"x2": (2, 5, 4, 4)} if more and "x2" in more else None
    proto = graph(text, **W, outputs=("y", "z" if more else "c"), inputs=inputs)
    code = "producer-shared" if more else "producer-is-output"
    check(proto, folded=0, left=[code])
    result = check(proto, limit=4e-6, clone_shared=True)
    assert ops(result.model).count("Conv") == 2
    assert {"w", "b"} <= {t.name for t in result.model.graph.initializer}
    assert "c" in {name for node in result.model.graph.node for name in node.output}


def test_no_clone_where_it_would_not_help():
    """The shared Conv lies behind a ReLU that the map does not pass: nothing is cloned, nothing is left dead."""
    text = "c = Conv (x, w, b)\nr = Relu (c)\ny = BN <maps = 5> (r)\nz = Exp (c)"
    check(graph(text, **W, outputs=("y", "z")), folded=0, left=["activation-between"], clone_shared=True)


def test_a_shared_carrier_is_cloned_with_its_conv_or_not_at_all():
    """Conv -> Transpose, read twice: whatever happens, no node is dead and outputs agree."""
    text = "c = Conv (x, w, b)\nt = Transpose <perm = [0, 1, 3, 2]> (c)\ny = BN <maps = 5> (t)\nz = Exp (t)"
    proto = graph(text, **W, outputs=("y", "z"))
    found = fold(proto, clone_shared=True)
    result = check(
        proto, folded=len(found.folded), left=[s.code for s in found.refused], limit=4e-6, clone_shared=True
    )
    read = {name for node in result.model.graph.node for name in node.input} | {"y", "z"}
    assert all(read.intersection(node.output) for node in result.model.graph.node)


def test_weights_shared_by_clone_and_original_are_not_copied_twice():
    """A map without scale changes the bias alone: both Conv read the one weight."""
    text = "c = Conv (x, w, b)\ny = Add (c, k)\nz = Relu (c)"
    result = check(graph(text, **W, k=(5, 1, 1), outputs=("y", "z")), limit=4e-6, clone_shared=True)
    weights = [node.input[1] for node in result.model.graph.node if node.op_type == "Conv"]
    assert weights == ["w", "w"]


CARRIED = {
    "average": "c = Conv (x, w)\np = AveragePool <kernel_shape = [2, 2]> (c)\ny = BN <maps = 5> (p)",
    "sum": "c = Conv (x, w)\nd = Conv (x, w)\na = Add (c, d)\ny = BN <maps = 5> (a)",
}
MOVED = {
    "directly": "c = Conv (x, w)\ny = BN <maps = 5> (c)",
    "transpose": "c = Conv (x, w)\np = Transpose <perm = [0, 1, 3, 2]> (c)\ny = BN <maps = 5> (p)",
    "max": "c = Conv (x, w)\np = MaxPool <kernel_shape = [2, 2]> (c)\ny = Mul (p, two)",
    "push": "n = BN <maps = 4> (x)\ny = Conv (n, w)",
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CARRIED)
def test_range_of_what_is_averaged_and_summed(case, dtype):
    """In float16 and bfloat16 a sum of carried values could overflow that did not before: --assume-range."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    proto = graph(CARRIED[case], dtype=np.dtype(kind), w=(5, 4, 1, 1))
    small = dtype != "float32"
    runs = dtype != "bfloat16"
    result = check(proto, folded=1 - small, left=["range-risk"] * small, limit=4e-6, runs=runs)
    assert not small or "--assume-range" in result.refused[0].help
    check(proto, limit=2e-2 if small else 4e-6, runs=runs, assume_range=True)


@pytest.mark.parametrize("case", MOVED)
def test_what_only_moves_has_no_range_risk(case):
    """A value that becomes what the site made anyway cannot overflow where the site did not."""
    held = {"w": (5, 4, 1, 1)} | ({"two": np.array(2.0)} if "two" in MOVED[case] else {})
    check(graph(MOVED[case], dtype=np.float16, **held), limit=2e-2)


def test_an_average_that_shrinks_has_no_range_risk():
    """|s| <= 1 and no shift: nothing grows."""
    text = "c = Conv (x, w)\np = AveragePool <kernel_shape = [2, 2]> (c)\ny = Mul (p, k)"
    proto = graph(text, dtype=np.float16, w=(5, 4, 1, 1), k=np.array([1, -0.5, 0.25, 0, 1]).reshape(5, 1, 1))
    check(proto, limit=2e-2)


@pytest.mark.parametrize(
    "text",
    [
        "h = MatMul (m, x)\ny = BatchNormalization (h, g, z, k, o)",
        "a = MatMul (m, x)\nh = Add (a, c)\ny = BatchNormalization (h, g, z, k, o)",
        "n = BatchNormalization (x, g, z, k, o)\ny = MatMul (m, n)",
        "n = BatchNormalization (x, g, z, k, o)\nh = MatMul (m, n)\ny = Add (h, c)",
    ],
    ids=["pull", "pull_existing", "push", "push_existing"],
)
def test_a_product_that_overflows_before_its_bias_brings_it_back(text):
    """100 (700 - 650) is 5000, but 70000 - 65000 passes infinity where MatMul stores float16: a range risk."""
    values = {"g": [100.0] * 2, "z": [0.0] * 2, "k": [650.0] * 2, "o": [1.0] * 2, "c": [[1.0], [2.0]], "m": np.eye(2)}
    held = {name: np.array(value) for name, value in values.items() if f", {name}" in text or f"({name}" in text}
    proto = graph(text, (1, 2, 1), dtype=np.float16, **held)
    feeds = {"x": np.full((1, 2, 1), 700, np.float16)}
    with np.errstate(over="ignore"):
        before, folded = (ReferenceEvaluator(p).run(None, feeds)[0] for p in (proto, fold(proto).model))
    assert np.isfinite(before).all()
    assert np.isfinite(folded).all()


def test_partial_in_float16():
    """x + t / s is larger than s x + t where s is small: 20000 + 60000 passes infinity."""
    values = {"g": np.full(2, 1e-3), "z": np.full(2, 60.0), "k": np.zeros(2), "o": np.ones(2)}
    text = "n = BatchNormalization (x, g, z, k, o)\ny = Conv <pads = [1, 1, 1, 1]> (n, w)"
    proto = graph(text, (1, 2, 3, 3), dtype=np.float16, w=(2, 2, 3, 3), **values)
    feeds = {"x": np.full((1, 2, 3, 3), 20000, np.float16)}
    with np.errstate(over="ignore", invalid="ignore"):
        before, folded = (ReferenceEvaluator(p).run(None, feeds)[0] for p in (proto, fold(proto, partial=True).model))
    assert np.isfinite(before).all()
    assert np.isfinite(folded).all()


CHAIN = ("[a] c = Conv (x, w, b)\n[a_bn] d = BN <maps = 5> (c)\n[e] e = Conv (d, v)\n"
         "[e_bn] f = BN <maps = 4> (e)\n[m] y = Mul (f, k)")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({"only": "a_bn"}, ["d"]), ({"only": ["a*"]}, ["d"]), ({"only": "*_bn"}, ["d", "f"]), ({"only": "y"}, []),
        ({"exclude": "a_bn"}, ["f", "y"]), ({"exclude": ["e_bn", "m"]}, ["d"]), ({"exclude": "*"}, []),
        ({"only": "*", "exclude": "f"}, ["d"]), ({"only": "[ae]_bn", "exclude": "e*"}, ["d"]), ({"only": "z"}, []),
        ({"only": "A_BN"}, []), ({"only": ("a_bn", "m"), "sources": "bn"}, ["d"]),
    ],
    ids=str,
)  # fmt: skip
def test_only_and_exclude(options, folded):
    """Patterns match node names and outputs, case counts; what is excluded stays, and is not listed."""
    proto = graph(CHAIN, **W, v=(4, 5, 1, 1), k=(4, 1, 1))
    result = fold(proto, **options)
    assert [site.output for site in result.folded] == folded
    check(proto, folded=len(folded), left=[site.code for site in result.refused], limit=4e-6, **options)
    assert bnfold.inspect(proto, **options).sites == result.report.sites


def test_a_map_before_an_excluded_one():
    """BN, excluded BN, Conv: the first cannot pass the second, which is no carrier."""
    text = "[one] m = BN <maps = 4> (x)\n[two] n = BN <maps = 4> (m)\ny = Conv (n, w, b)"
    result = check(graph(text, **W), folded=0, left=["consumer-cannot-absorb"], exclude="two")
    assert "BatchNormalization 'two'; upstream: 'x' is a model input" in result.refused[0].message


def test_exclude_holds_for_merged_branches():
    """--merge-branches leaves alone what --exclude names, and what --only does not."""
    text = "[c] c = Conv <pads = [1, 1, 1, 1]> (x, w)\n[d] d = Conv (x, v)\n[add] y = Add (c, d)"
    proto = graph(text, w=(4, 4, 3, 3), v=(4, 4, 1, 1))
    check(proto, folded=1, merge_branches=True, only=["d"], limit=4e-6)
    check(proto, folded=0, merge_branches=True, exclude="*")
    check(proto, folded=0, merge_branches=True, only="nothing")
