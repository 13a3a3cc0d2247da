"""Where a shift has no constant to go into: the Add that stays, where it stays, its names, and when it may."""

import numpy as np
import pytest
from ml_dtypes import bfloat16

from tests.conftest import initializer, ops
from tests.folding import check, fold, graph

TURNED = "[mm] h = MatMul (x, w)\n[t] r = Transpose <perm = [0, 2, 1]> (h)\n[bn] y = BN <maps = 5> (r)"
PADDED = "[bn] n = BN <maps = 4> (x)\n[pad] y = Conv <pads = [1, 1, 1, 1]> (n, v)"
PUSHED = "[bn] n = BN <maps = 4> (x)\n[t] r = Transpose <perm = [0, 2, 1]> (n)\n[mm] y = MatMul (r, w)"
# An Add and a Concat of two MatMul and Conv branches, (2, 6, 4) and (2, 4, 6), along the maps
BOTH = ("[mm] h = MatMul (x, m)\n[t] r = Transpose <perm = [0, 2, 1]> (h)\n[u] q = Transpose <perm = [0, 2, 1]> (x)\n"
        "[cv] c = Conv (q, w)\n[cat] a = Concat <axis = 1> (c, r)\n[bn] y = BN <maps = {}> (a)")  # fmt: skip


def turned(**more):
    """MatMul, Transpose, map."""
    return graph(TURNED, (2, 3, 4), w=(4, 5), **more)


def shift_of(proto, prefix, maps):
    """beta - s mean, from the parameters in float64."""
    gamma, beta, mean, var = (initializer(proto, f"{prefix}.{n}").astype(np.float64) for n in "gbmv")
    assert len(gamma) == maps
    return beta - gamma / np.sqrt(var + np.float64(np.float32(1e-5))) * mean


def test_the_map_becomes_the_add():
    """The Add is `<bn>_shift` and makes y, its constant is `<value>_bias`; what changed between has fresh names."""
    proto = turned()
    result = check(proto, nodes="MatMul Transpose Add", limit=4e-6)
    nodes = result.model.graph.node
    assert [node.name for node in nodes] == ["mm", "t", "bn_shift"]
    assert (list(nodes[2].input), list(nodes[2].output)) == (["r_folded", "r_bias"], ["y"])
    assert sorted(result.renamed) == [("h", "h_folded"), ("r", "r_folded")]
    assert [t.name for t in result.model.graph.initializer] == ["w_folded", "r_bias"]
    bias = initializer(result.model, "r_bias")
    assert bias.shape == (5, 1)
    np.testing.assert_allclose(bias.ravel(), shift_of(proto, "y", 5), rtol=1e-6)
    assert (result.folded[0].direction, result.folded[0].into) == ("pull", "MatMul 'mm'")


def test_a_chain_becomes_the_add_in_place_of_its_last_node():
    """Three links: only the last one stays, as an Add, though it was a Sub."""
    text = "[mm] h = MatMul (x, w)\n[a] p = Add (h, t)\n[b] q = Mul (s, p)\n[c] y = Sub (t, q)"
    result = check(graph(text, (2, 3, 4), w=(4, 5), s=(5,), t=(5,)), limit=4e-6)
    assert ops(result.model) == ["MatMul", "Add"]
    assert result.model.graph.node[1].output[0] == "y"


def test_a_name_that_is_taken():
    """A node `bn_shift` and values `r_bias`, `h_folded` are there already: others are found."""
    text = TURNED.replace("y = BN", "k = BN") + "\n[bn_shift] r_bias = Relu (k)\n[o] h_folded = Exp (r_bias)\n"
    proto = graph(text + "[l] y = Neg (h_folded)", (2, 3, 4), w=(4, 5))
    result = check(proto, limit=4e-6)
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == len(names)
    values = [name for node in result.model.graph.node for name in node.output]
    values += [t.name for t in result.model.graph.initializer]
    assert len(set(values)) == len(values)
    assert {"r_bias", "h_folded"} <= set(values)


@pytest.mark.parametrize("sources", ["bn", "affine", "all"])
def test_the_add_is_no_site(sources):
    """Neither in the run that leaves it nor, by default, in a later one; --sources all says what it is."""
    result = check(turned(), sources=sources)
    assert [site.outcome for site in result.report.sites] == ["folded"]
    later = fold(result.model, sources=sources)
    assert not later.folded
    assert [site.code for site in later.refused] == (["producer-cannot-absorb"] if sources == "all" else [])


def test_the_add_of_partial_is_a_site_of_the_next_run_only():
    """There it is a chain before a padded Conv like any other, and nothing more can be done."""
    result = check(graph(PADDED, v=(5, 4, 3, 3)), nodes="Add Conv", limit=5e-6, partial=True)
    assert [site.outcome for site in result.report.sites] == ["folded"]
    assert [node.name for node in result.model.graph.node] == ["bn_shift", "pad"]
    for options in ({}, {"partial": True}, {"sources": "all"}):
        (site,) = fold(result.model, **options).report.sites
        assert (site.kind, site.outcome, site.code) == ("chain", "left", "shift-meets-padding")
    assert not fold(result.model, sources="bn").report.sites


def test_two_absorbers_have_their_add_behind_the_matmul():
    """Conv and MatMul joined by Concat: the Conv has a bias, so that the Add is only on the MatMul's path."""
    proto = graph(BOTH.format(8), (2, 6, 4), m=(4, 4), w=(4, 4, 1))
    result = check(proto, nodes="MatMul Add Transpose Transpose Conv Concat", limit=4e-6)
    nodes = {node.name: node for node in result.model.graph.node}
    assert set(nodes) == {"mm", "mm_bias", "t", "u", "cv", "cat"}
    assert nodes["mm_bias"].input[0] == nodes["mm"].output[0]
    assert nodes["cat"].output[0] == "y"
    assert set(result.folded[0].into.split(", ")) == {"Conv 'cv'", "MatMul 'mm'"}


@pytest.mark.parametrize("z", ["output", "read"])
def test_two_absorbers_one_of_which_is_read_beside(z):
    """A piece of what the MatMul makes leaves before the Concat: an Add behind the MatMul would lengthen its path."""
    text = BOTH.format(6).replace("(h)\n", "(p)\n").replace("[t]", "[sp] p, k = Split <axis = 2> (h, half)\n[t]")
    text = text.replace("p, k", "p, z") if z == "output" else text + "\n[e] z = Exp (k)"
    proto = graph(text, (2, 6, 4), m=(4, 4), w=(4, 4, 1), half=np.array([2, 2]), outputs=("y", "z"))
    result = check(proto, limit=4e-6)
    assert result.model.graph.node[[n.output[0] for n in result.model.graph.node].index("y")].op_type == "Add"


JOINED = "{}\n[t] r = Transpose <perm = [0, 2, 1]> (j)\n[mm] y = MatMul (r, w)"
SIDES = ["Add (n, v)", "Sum (v, n)", "Sub (v, n)", "Concat <axis = 1> (n, v)", "Concat <axis = 1> (v, n)"]


@pytest.mark.parametrize("join", SIDES)
@pytest.mark.parametrize("far", [True, False])
def test_a_pushed_add_and_a_path_from_the_side(join, far):
    """What comes in between map and MatMul does not lose the map, and would meet the Add."""
    side = "[e] v = Exp (x)\n" if far else ""
    scale = (4, 1) if "Concat" in join else np.array(1.0)  # what is added to has no scale of its own
    text = f"{side}[m] m = Mul (x, s)\n[a] n = Add (m, o)\n[j] j = {join}"
    held = {"s": scale, "o": (4, 1), "w": (8 if "Concat" in join else 4, 5)}
    proto = graph(JOINED.format(text), (2, 4, 3), **held, inputs={} if far else {"v": (2, 4, 3)})
    result = check(proto, folded=0, left=["consumer-cannot-absorb"], sources="all")
    assert "MatMul 'mm' would need an Add" in result.refused[0].message.split("; upstream: ")[0]


@pytest.mark.parametrize("join", SIDES[3:])
def test_a_pushed_scale_and_a_path_from_the_side(join):
    """There is no Add to meet: the rows of the weight that belong to the scaled piece take it in."""
    text = f"[m] n = Mul (x, s)\n[j] j = {join}"
    proto = graph(JOINED.format(text), (2, 4, 3), s=(4, 1), w=(8, 5), inputs={"v": (2, 4, 3)})
    check(proto, nodes="Concat Transpose MatMul", limit=4e-6, sources="all")


@pytest.mark.parametrize("join", ["Add (n, k)", "Concat <axis = 1> (n, o)", "Concat <axis = 1> (n, n)", "Add (n, n)"])
def test_a_pushed_add_and_no_path_from_the_side(join):
    """A constant, or the same value once more: every path loses the map, and has the Add in its place."""
    text = f"[m] m = Mul (x, s)\n[a] n = Add (m, k)\n[j] j = {join}"
    held = {"s": (4, 1), "k": (4, 1), "w": (8 if "Concat" in join else 4, 5)}
    held |= {"o": (2, 4, 3)} if "o)" in join else {}
    result = check(graph(JOINED.format(text), (2, 4, 3), **held), limit=4e-6, sources="all")
    assert ops(result.model)[-2:] == ["MatMul", "Add"]
    assert "Mul" not in ops(result.model)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize("case", ["pull", "push", "concat", "partial"])
def test_half_precision(case, dtype):
    """A product without its shift, or x + t / s, may overflow where the map did not: only with --assume-range."""
    text, x, held, options = {
        "pull": (TURNED, (2, 3, 4), {"w": (4, 5)}, {}),
        "push": (PUSHED, (2, 4, 3), {"w": (4, 5)}, {}),
        "concat": (BOTH.format(8), (2, 6, 4), {"m": (4, 4), "w": (4, 4, 1)}, {}),
        "partial": (PADDED, (2, 4, 6, 6), {"v": (5, 4, 3, 3)}, {"partial": True}),
    }[case]
    proto = graph(text, x, dtype=dtype, **held)
    half = "float16" if dtype is np.float16 else "bfloat16"
    (site,) = check(proto, folded=0, left=["range-risk"], runs=False, **options).refused
    assert f"in {half}" in site.message
    assert ("Add" in site.message) == (case == "partial")
    assert "--assume-range" in site.help
    result = check(proto, runs=dtype is np.float16 and case != "partial", limit=1e-2, assume_range=True, **options)
    assert "Add" in ops(result.model)
    assert "BatchNormalization" not in ops(result.model)
    check(graph(text, x, **held), limit=5e-6, **options)


def test_half_precision_with_a_place_for_the_shift():
    """A Gemm adds before it rounds: no new risk. An Add adds to the product, which has another range: it is one."""
    proto = graph("h = MatMul (x, w)\ny = BN <maps = 5> (h)", (3, 4), dtype=np.float16, w=(4, 5))
    check(proto, nodes="Gemm", limit=1e-2)
    text = "[m] m = MatMul (x, w)\n[a] h = Add (m, k)\n[bn] y = BN <maps = 5> (h)"
    proto = graph(text, (3, 4), dtype=np.float16, w=(4, 5), k=(5,))
    assert "Add 'a'" in check(proto, folded=0, left=["range-risk"]).refused[0].message
    check(proto, nodes="MatMul Add", limit=1e-2, assume_range=True)


def test_a_map_that_only_scales_leaves_no_add():
    """Nothing to add: the MatMul has no bias and needs none, in float16 either."""
    text = "[mm] h = MatMul (x, w)\n[t] r = Transpose <perm = [0, 2, 1]> (h)\n[m] y = Mul (r, s)"
    for dtype in (np.float32, np.float16):
        proto = graph(text, (2, 3, 4), dtype=dtype, w=(4, 5), s=(5, 1))
        check(proto, nodes="MatMul Transpose", limit=1e-2 if dtype is np.float16 else 4e-6)


def test_what_one_fold_frees_another_finds():
    """The first map's Add stays before the second, which goes with it: maps in a row leave one Add."""
    text = TURNED.replace("y = BN", "k = BN") + "\n[bn2] y = BN <maps = 5> (k)"
    result = check(graph(text, (2, 3, 4), w=(4, 5)), folded=2, limit=5e-6)
    assert ops(result.model) == ["MatMul", "Transpose", "Add"]
