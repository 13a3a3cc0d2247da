"""Gemm and MatMul take maps in from behind and from before: transposes, alpha, beta, every C, ranks, biases."""

import itertools

import numpy as np
import pytest

from tests.conftest import initializer, ops, tensor
from tests.folding import check, fold, graph

M, K, N = 3, 4, 5
CS = {
    "absent": None, "empty": "", "scalar": (), "one": (1,), "N": (N,), "1N": (1, N), "MN": (M, N), "11": (1, 1),
}  # fmt: skip
ALPHA_BETA = [(1.0, 1.0), (0.5, 1.0), (2.0, 3.0), (0.5, 0.0), (0.0, 2.0)]


def gemm(side: str, trans_a: int, trans_b: int, c, alpha: float, beta: float):
    """A Gemm with a map behind it (pull) or, of the columns of x, before it (push)."""
    attributes = f"transA = {trans_a}, transB = {trans_b}, alpha = {alpha}, beta = {beta}"
    third = "" if c is None else ', ""' if c == "" else ", k"
    op = f"[op] {{}} = Gemm <{attributes}> ({{}}, w{third})"
    behind, before = (
        f"{op.format('h', 'x')}\ny = BN <maps = {N}> (h)",
        f"n = BN <maps = {K}> (x)\n{op.format('y', 'n')}",
    )
    tensors = {"w": (N, K) if trans_b else (K, N)} | ({"k": c} if isinstance(c, tuple) else {})
    return graph(behind if side == "pull" else before, (K, M) if trans_a else (M, K), **tensors)


@pytest.mark.parametrize(("alpha", "beta"), ALPHA_BETA)
@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize(("side", "trans_a"), [("pull", 0), ("pull", 1), ("push", 0)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(side, trans_a, trans_b, c, alpha, beta):
    """Columns or rows of B, alpha not counted twice, beta once and then 1, C of every shape that is per column."""
    result = check(gemm(side, trans_a, trans_b, CS[c], alpha, beta), nodes="Gemm")
    node = result.model.graph.node[0]
    has_c = len(node.input) > 2 and bool(node.input[2])
    assert has_c or (side == "push" and alpha == 0)
    assert next(a.f for a in node.attribute if a.name == "beta") == (1.0 if has_c else beta)
    assert next(a.f for a in node.attribute if a.name == "alpha") == alpha
    assert c not in ("1N", "MN") or initializer(result.model, node.input[2]).shape == CS[c]


@pytest.mark.parametrize("side", ["pull", "push"])
def test_gemm_with_one_number_per_row(side):
    """C of shape (M, 1) would have to grow to (M, N): refused, both ways, and the reason names the shape."""
    result = check(gemm(side, 0, 0, (M, 1), 1.0, 1.0), folded=0, left=["not-per-map"])
    assert "(3, 1)" in result.refused[0].message


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
def test_gemm_takes_a_scale_before_it_whatever_its_c_is(alpha, beta):
    """A pushed scale does not touch C, so (M, 1) does not matter, and beta stays."""
    text = f"n = Mul (x, s)\ny = Gemm <alpha = {alpha}, beta = {beta}> (n, w, k)"
    result = check(graph(text, (M, K), w=(K, N), s=(K,), k=(M, 1)), nodes="Gemm", sources="all")
    assert next(a.f for a in result.model.graph.node[0].attribute if a.name == "beta") == beta
    assert initializer(result.model, "k").shape == (M, 1)


def test_gemm_of_a_transposed_square():
    """transA makes the maps the rows that are summed over nowhere: with K = M nothing but the axis tells."""
    proto = graph("n = BN <maps = 4> (x)\n[op] y = Gemm <transA = 1> (n, w, k)", (4, 4), w=(4, 4), k=(4,))
    result = check(proto, folded=0, left=["not-per-map"])
    assert "along axis 1, its 4 channels are axis 0; upstream: 'x' is a model input" in result.refused[0].message


def test_gemm_same_wb_trap():
    """B and C are one initializer: each is changed in its own way, none in the other's place."""
    proto = graph("h = Gemm <beta = 0.5> (x, w, w)\ny = BN <maps = 4> (h)", (4, 4), w=(4, 4))
    node = check(proto, nodes="Gemm").model.graph.node[0]
    assert node.input[1] != node.input[2]


@pytest.mark.parametrize("text", ["h = Gemm (w, x, k)", "h = Gemm (x, v, k)"], ids=["left", "input"])
def test_gemm_whose_b_is_no_constant(text):
    """A constant on the left, or none: columns of B cannot be changed."""
    proto = graph(f"{text}\ny = BN <maps = 4> (h)", (4, 4), w=(4, 4), k=(4,), inputs={"v": (4, 4)})
    check(proto, folded=0, left=["weights-not-constant"])


def test_gemm_as_the_second_matrix():
    """A map of the B operand, or of C, is nobody's input maps."""
    proto = graph("n = BN <maps = 4> (x)\n[op] y = Gemm (w, n, k)", (4, 4), w=(4, 4), k=(4,))
    second = graph("n = BN <maps = 4> (x)\n[op] y = Gemm (v, w, n)", (4, 4), w=(4, 4), inputs={"v": (4, 4)})
    for each in (proto, second):
        message = check(each, folded=0, left=["consumer-cannot-absorb"]).refused[0].message
        assert "'op'" in message.split("; upstream: ")[0]


TURN = "n = BN <maps = 4> (x)\nr = Transpose <perm = [0, 2, 1]> (n)"
TURNED = "\nr = Transpose <perm = [0, 2, 1]> (h)\ny = BN <maps = 5> (r)"
PLAIN, ADDED = "h = MatMul (x, w)", "m = MatMul (x, w)\nh = Add ({})"


@pytest.mark.parametrize(
    ("x", "w", "text", "nodes"),
    [
        ((3, 4), (4, 5), PLAIN + "\ny = BN <maps = 5> (h)", "Gemm"),
        (("n", 4), (4, 5), PLAIN + "\ny = BN <maps = 5> (h)", "Gemm"),
        ((2, 3, 4), (4, 5), PLAIN + "\np = Mul (h, s)\ny = Add (p, t)", "MatMul Add"),
        ((2, 2, 3, 4), (4, 5), PLAIN + "\np = Mul (s, h)\ny = Add (t, p)", "MatMul Add"),
        ((2, 3, 4), (2, 4, 5), PLAIN + "\np = Mul (h, s)\ny = Add (p, t)", "MatMul Add"),
        ((3, 4), (2, 4, 5), PLAIN + "\np = Mul (h, s)\ny = Add (p, t)", "MatMul Add"),
        ((2, 3, 4), (4, 5), PLAIN + TURNED, "MatMul Transpose Add"),
        ((2, 3, 4), (4, 5), PLAIN + "\nr = Reshape (h, to)\ny = BN <maps = 5> (r)", "MatMul Reshape Add"),
        ((3, 4), (4, 5), ADDED.format("m, k") + "\ny = BN <maps = 5> (h)", "MatMul Add"),
        ((3, 4), (4, 5), ADDED.format("k, m") + "\ny = BN <maps = 5> (h)", "MatMul Add"),
        ((2, 3, 4), (4, 5), ADDED.format("k, m") + "\np = Mul (s, h)\ny = Add (t, p)", "MatMul Add"),
    ],
    ids=["2d", "2d_free", "3d", "4d", "batched", "batched_2d", "transposed", "reshaped", "add", "left_add", "3d_add"],
)  # fmt: skip
def test_matmul_pull(x, w, text, nodes):
    """Columns of the right operand; bias by the Add behind, a Gemm of two matrices, or an Add where the map was."""
    proto = graph(text, x, w=w, s=(5,), t=(5,), k=(5,), to=np.array([-1, 5]))
    check(proto, nodes=nodes, limit=4e-6)


@pytest.mark.parametrize("k", [(), (1,), (5,), (1, 5), (3, 5), (1, 1, 5), (2, 3, 5), (2, 1, 5), (3, 1)], ids=str)
def test_bias_shapes_behind_a_matmul(k):
    """An Add of any shape is that MatMul's bias, unless it would have to grow; it is no site itself."""
    proto = graph("m = MatMul (x, w)\nh = Add (m, k)\np = Mul (h, s)\ny = Add (p, t)", (2, 3, 4),
                  w=(4, 5), k=tensor("k", np.random.default_rng(1).normal(size=k)), s=(5,), t=(5,))  # fmt: skip
    if k == (3, 1):
        check(proto, folded=0, left=["would-grow"])
        return
    result = check(proto, nodes="MatMul Add", limit=4e-6)
    assert len(result.report.sites) == 1


@pytest.mark.parametrize(
    ("x", "text", "nodes"),
    [
        ((2, 4, 3), "h = MatMul (w, x)\ny = BN <maps = 5> (h)", "MatMul Add"),
        ((4, 3), "h = MatMul (w, x)\np = Mul (h, s)\ny = Add (p, t)", None),
        ((2, 2, 4, 3), "h = MatMul (w, x)\np = Mul (h, s)\ny = Add (p, t)", "MatMul Add"),
        ((2, 4, 3), "m = MatMul (w, x)\nh = Add (k, m)\ny = BN <maps = 5> (h)", "MatMul Add"),
        ((2, 4, 3), "n = BN <maps = 4> (x)\ny = MatMul (w, n)", "MatMul Add"),
        ((2, 4, 3), "n = BN <maps = 4> (x)\nh = MatMul (w, n)\ny = Add (h, k)", "MatMul Add"),
    ],
)
def test_matmul_with_the_constant_on_the_left(x, text, nodes):
    """Rows of A are the last axis but one of the result, its columns that of x."""
    proto = graph(text, x, w=(5, 4), s=(5, 1), t=(5, 1), k=(5, 1))
    if nodes is None:  # there the rows are axis 0, which a chain must not vary along
        check(proto, folded=0, left=["not-per-map"] * 2, sources="all")
    else:
        check(proto, nodes=nodes, limit=4e-6)


@pytest.mark.parametrize(
    ("text", "x", "w"),
    [
        ("h = MatMul (x, w)\ny = BN <maps = 5> (h)", (2, 5, 5), (5, 5)),
        ("h = MatMul (w, x)\np = Mul (h, s)\ny = Add (p, s)", (2, 5, 5), (5, 5)),
        ("n = BN <maps = 5> (x)\ny = MatMul (n, w)", (2, 5, 5), (5, 5)),
        ("h = MatMul (x, w)\nr = Transpose <perm = [1, 0]> (h)\ny = BN <maps = 5> (r)", (5, 5), (5, 5)),
        ("h = MatMul (x, w)\nr = Reshape (h, to)\ny = BN <maps = 5> (r)", (5, 5), (5, 5)),
    ],
    ids=["3d_bn_on_rows", "left_last_axis", "push_rows", "transposed", "scrambled"],
)
def test_matmul_traps_where_sizes_coincide(text, x, w):
    """All sizes are 5: only the axis says that the maps are not the columns."""
    proto = graph(text, x, w=w, s=(5,), to=np.array([1, 5, 5]))
    check(proto, folded=0, left=["not-per-map"])


def test_one_column_times_many_numbers():
    """The product enlarges the last axis: it is no map per column, and the Add cannot pass it."""
    text = "h = MatMul (x, w)\np = Mul (h, s)\ny = Add (p, s)"
    check(graph(text, (2, 3, 4), w=(4, 1), s=(5,)), folded=0, left=["producer-cannot-absorb"])
    check(graph(text, (2, 3, 4), w=(4, 1), s=(5,)), folded=0, left=["not-per-map", "producer-cannot-absorb"],
          sources="all")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "x", "w", "nodes"),
    [
        ("n = BN <maps = 4> (x)\ny = MatMul (n, w)", (3, 4), (4, 5), "Gemm"),
        ("n = BN <maps = 4> (x)\nh = MatMul (n, w)\ny = Add (h, k)", (3, 4), (4, 5), "MatMul Add"),
        ("p = Mul (x, s)\nn = Add (p, t)\ny = MatMul (n, w)", (2, 3, 4), (4, 5), "MatMul Add"),
        ("p = Mul (x, s)\nn = Add (p, t)\nh = MatMul (n, w)\ny = Add (k, h)", (2, 3, 4), (4, 5), "MatMul Add"),
        (TURN + "\ny = MatMul (r, w)", (2, 4, 3), (4, 5), "Transpose MatMul Add"),
    ],
    ids=["2d", "2d_add", "3d", "3d_add", "transposed"],
)  # fmt: skip
def test_matmul_push(text, x, w, nodes):
    """Rows of the right operand; what the shift adds up to goes into the bias behind, or a new one."""
    proto = graph(text, x, w=w, s=(4,), t=(4,), k=(5,))
    check(proto, nodes=nodes, limit=4e-6, sources="all")


def test_push_of_a_scale_alone_gives_no_bias():
    """No shift, no Add: the model gets smaller."""
    check(graph("n = Mul (x, s)\ny = MatMul (n, w)", (2, 3, 4), w=(2, 4, 5), s=(4,)), nodes="MatMul", sources="all")


FUSED = "com.microsoft.FusedMatMul"


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("side", ["pull", "push"])
def test_fused_matmul_with_alpha(side, alpha):
    """alpha counts for what a pushed shift adds up to, and not for the bias of a pulled one."""
    text = (f"h = {FUSED} <alpha = {alpha}> (x, w)\ny = BN <maps = 4> (h)" if side == "pull"
            else f"n = BN <maps = 4> (x)\ny = {FUSED} <alpha = {alpha}> (n, w)")  # fmt: skip
    check(graph(text, (3, 4), w=(4, 4), y=(3, 4)), nodes="FusedMatMul Add", limit=4e-6)


@pytest.mark.parametrize("x", [(2, 3, 4), ("n", 3, 4), (2, 2, 3, 4)], ids=str)
def test_fused_matmul_of_any_rank(x):
    """Its shape is known: a chain along the last axis is per column, with what carries it in between or not."""
    for between in ("", "\ni = Identity (h)", "\nu = Unsqueeze (h, ax)\ni = Squeeze (u, ax)"):
        value = "i" if between else "h"
        text = f"h = {FUSED} <alpha = 0.5> (x, w){between}\np = Mul ({value}, s)\ny = Add (p, t)"
        held = {"ax": np.array([0])} if "ax)" in between else {}
        proto = graph(text, x, w=(4, 5), s=(5,), t=(5,), y=(*x[:-1], 5), **held)
        result = check(proto, limit=4e-6)
        assert [op for op in ops(result.model) if op in ("Mul", "Add", "FusedMatMul")] == ["FusedMatMul", "Add"]


@pytest.mark.parametrize("attribute", ["transA", "transB", "transBatchA", "transBatchB"])
def test_fused_matmul_that_transposes_a_square(attribute):
    """Sizes coincide, the axes do not: nothing folds."""
    x = (4, 4) if attribute in ("transA", "transB") else (4, 4, 4)
    text = f"[op] h = {FUSED} <{attribute} = 1> (x, w)\np = Mul (h, s)\ny = Add (p, t)"
    proto = graph(text, x, w=x, s=(4,), t=(4,), y=x)
    assert not check(proto, folded=0).report.sites  # a bare chain, and no convolution near
    result = fold(proto, sources="all")
    assert not result.folded
    assert {site.code for site in result.refused} <= {"producer-cannot-absorb", "unknown-shape"}  # by the shape rule
    proto = graph(f"[op] h = {FUSED} <{attribute} = 1> (x, w)\ny = BN <maps = 4> (h)", x, w=x, y=x)
    result = check(proto, folded=0, left=["producer-cannot-absorb"])
    assert "FusedMatMul 'op', which transposes" in result.refused[0].message
    text = f"p = Mul (x, s)\nn = Add (p, t)\n[op] y = {FUSED} <{attribute} = 1> (n, w)"
    proto = graph(text, x, w=x, s=(4,), t=(4,), y=x)
    result = check(proto, folded=0, left=["consumer-cannot-absorb"], sources="all")
    assert "FusedMatMul 'op', which transposes" in result.refused[0].message.split("; upstream: ")[0]


def test_fused_gemm_with_an_activation():
    """An activation sits between the product and the map."""
    for attribute, left in (('activation = "Relu"', ["activation-between"]), ("alpha = 0.5", [])):
        text = f"h = com.microsoft.FusedGemm <{attribute}> (x, w, k)\ny = BN <maps = 5> (h)"
        check(graph(text, (3, 4), w=(4, 5), k=(5,), y=(3, 5)), folded=1 - len(left), left=left, runs=False)


@pytest.mark.parametrize("order", list(itertools.product(["m, k", "k, m"], ["Add", "Sum"])))
def test_add_behind_a_matmul_alone_is_no_site(order):
    """A model of MatMul and bias comes back byte for byte, and no site is listed, whatever the sources."""
    proto = graph(f"m = MatMul (x, w)\ny = {order[1]} ({order[0]})", (3, 4), w=(4, 5), k=(5,))
    for sources in ("bn", "affine", "all"):
        assert not check(proto, folded=0, sources=sources).report.sites


def test_matmul_bias_that_is_an_output_stays():
    """The Add's output is public: neither it nor what lies before may change, though MatMul alone could."""
    text = "m = MatMul (x, w)\nh = Add (m, k)\ny = BN <maps = 5> (h)"
    proto = graph(text, (3, 4), w=(4, 5), k=(5,), outputs=("y", "h"))
    check(proto, folded=0, left=["producer-is-output"])


def test_a_map_with_a_bias_shared_by_two_matmuls():
    """The bias of both is one initializer: the other one keeps its numbers."""
    text = "m = MatMul (x, w)\nh = Add (m, k)\ny = BN <maps = 5> (h)\np = MatMul (x, w)\nz = Add (p, k)"
    result = check(graph(text, (3, 4), w=(4, 5), k=(5,), outputs=("y", "z")), nodes="MatMul Add MatMul Add")
    assert ops(result.model).count("MatMul") == 2
