"""Chains of Mul, Add, Sub, Div, Neg and Sum by constants: which are maps, which are none, and which are wanted."""

import numpy as np
import pytest

from tests.conftest import initializer
from tests.folding import check, graph

CONV = "[conv] c = Conv (x, w, b)\n"
W = {"w": (5, 4, 3, 3), "b": (5,)}
PER_MAP = [(5, 1, 1), (1, 5, 1, 1)]
ONE = [(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)]
LINKS = ["Mul (c, k)", "Mul (k, c)", "Add (c, k)", "Add (k, c)", "Sub (c, k)", "Sub (k, c)", "Div (c, k)",
         "Sum (c, k)", "Sum (k, c)"]  # fmt: skip


def constant(shape, name="k"):
    """Away from zero, of both signs: it is divided by."""
    rng = np.random.default_rng(len(name))
    return rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)


@pytest.mark.parametrize("shape", PER_MAP + ONE, ids=str)
@pytest.mark.parametrize("link", LINKS)
def test_one_link_behind_a_conv(link, shape):
    """Every operator, both operand orders, every shape of a constant that is per map or one number."""
    check(graph(f"{CONV}[m] y = {link}", **W, k=constant(shape)), nodes="Conv", limit=4e-6)


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (), (1, 1)], ids=str)
@pytest.mark.parametrize("link", LINKS)
def test_one_link_before_a_conv(link, shape):
    """The same downstream, where no padding is read."""
    proto = graph(f"[m] n = {link.replace('c', 'x')}\ny = Conv (n, w, b)", **W, k=constant(shape))
    check(proto, nodes="Conv", limit=4e-6)


def test_neg_and_a_long_chain():
    """Neg and all the others in one row are one map, folded once."""
    text = (
        CONV
        + "n = Neg (c)\np = Mul (n, k)\nq = Sub (l, p)\nr = Div (q, d)\ns = Sum (l, r)\nt = Neg (s)\ny = Add (t, l)"
    )
    result = check(graph(text, **W, k=constant((5, 1, 1)), l=constant((1, 5, 1, 1)), d=constant(())), nodes="Conv")
    assert result.folded[0].kind == "chain"


def test_division_of_a_constant_is_no_map():
    """k / c is not affine."""
    result = check(graph(CONV + "y = Div (k, c)", **W, k=constant((5, 1, 1))), folded=0)
    assert not result.report.sites


@pytest.mark.parametrize(
    ("k", "code"),
    [
        ((6,), "not-per-map"), ((6, 1), "not-per-map"), ((1, 1, 6, 1), "not-per-map"), ((5, 1, 6), "not-per-map"),
        ((5, 6, 6), "not-per-map"), ((2, 1, 1, 1), "not-per-map"), ((2, 5, 1, 1), "not-per-map"),
        ((3, 1, 5, 1, 1), "not-per-map"), ((1, 1, 5, 1, 1), "not-per-map"), ((1, 1, 1, 1, 1), "not-per-map"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_constants_that_are_not_per_map(op, k, code):
    """Along width, height, both, batch, or with a higher rank (of ones too: the result has that rank)."""
    proto = graph(f"[conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)\n[m] y = {op} (c, k)", **W, k=constant(k))
    for sources in ("affine", "all"):
        message = check(proto, folded=0, left=[code], sources=sources).refused[0].message
        assert "'k'" in message or "'conv'" in message
    check(proto, folded=0, left=[], sources="bn")


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)], ids=str)
def test_traps_where_all_sizes_coincide(shape):
    """x is (4, 4, 4, 4) with 4 maps: width, height and batch are not the maps."""
    for text in ("c = Conv (x, w)\n[m] y = Mul (c, k)", "[m] n = Mul (x, k)\ny = Conv (n, w)"):
        proto = graph(text, (4, 4, 4, 4), w=(4, 4, 1, 1), k=constant(shape))
        check(proto, folded=0, left=["not-per-map"])


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_one_map_times_many_numbers_expands(op):
    """Conv with one map x (1, C, 1, 1): the result has C maps, the Conv cannot make them."""
    proto = graph(f"c = Conv (x, w)\n[m] y = {op} (c, k)", w=(1, 4, 3, 3), k=constant((1, 5, 1, 1)))
    check(proto, folded=0, left=["not-per-map"])
    proto = graph(f"[m] n = {op} (x, k)\ny = Conv (n, w)", (2, 1, 6, 6), w=(3, 5, 3, 3), k=constant((5, 1, 1)))
    check(proto, folded=0, left=["not-per-map"])


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_batch_of_one_and_a_free_batch(batch):
    """(1, 5, 1, 1) does not enlarge a free batch; (2, 1, 1, 1) enlarges a batch of 1, and may enlarge a free one."""
    check(graph(CONV + "y = Mul (c, k)", (batch, 4, 6, 6), **W, k=constant((1, 5, 1, 1))), nodes="Conv")
    code = "not-per-map" if batch == 1 else "unknown-shape"
    check(
        graph(CONV + "y = Mul (c, k)", (batch, 4, 6, 6), **W, k=constant((2, 1, 1, 1))),
        folded=0,
        left=[code],
        runs=False,
    )


@pytest.mark.parametrize("text", [
    "c = Conv (x, w, b)\nr = Transpose <perm = [0, 2, 3, 1]> (c)\np = Mul (r, k)\ny = Add (l, p)",
    ("n = Transpose <perm = [0, 3, 1, 2]> (x)\nc = Conv (n, w, b)\nr = Transpose <perm = [0, 2, 3, 1]> (c)\n"
    "p = Sub (r, k)\ny = Mul (p, l)"),
    "p = Mul (x, i)\nq = Add (p, i)\nr = Transpose <perm = [0, 3, 1, 2]> (q)\ny = Conv (r, w, b)",
], ids=["behind", "both", "before"])  # fmt: skip
def test_channels_last(text):
    """Keras: the constants lie along the last axis, a Transpose lies between them and the Conv."""
    x = (2, 4, 6, 6) if text.startswith("c") else (2, 6, 6, 4)
    tensors = {"k": constant((5,)), "l": constant((5,), "two"), "i": constant((4,))}
    result = check(graph(text, x, **W, **tensors), limit=4e-6)
    assert not {"Mul", "Add", "Sub"} & {n.op_type for n in result.model.graph.node}


FROZEN = {
    "unoptimised": "e = Add (v, eps)\nr = Sqrt (e)\ni = Reciprocal (r)\ns = Mul (g, i)\nm2 = Mul (m, s)\n"
                   "t = Sub (h, m2)\n"
                   "s4 = Reshape (s, to)\nt4 = Reshape (t, to)\np = Mul (c, s4)\ny = Add (p, t4)",
    "div": "e = Add (v, eps)\nr = Sqrt (e)\ns = Div (g, r)\nm2 = Mul (m, s)\nt = Sub (h, m2)\n"
           "s4 = Reshape (s, to)\nt4 = Unsqueeze (t, ax)\np = Mul (s4, c)\ny = Add (p, t4)",
    "pow": "e = Add (v, eps)\ni = Pow (e, half)\ns = Mul (g, i)\nm4 = Reshape (m, to)\ns4 = Reshape (s, to)\n"
           "h4 = Reshape (h, to)\nd = Sub (c, m4)\np = Mul (d, s4)\ny = Add (p, h4)",
    "undone": "m4 = Reshape (m, to)\nv4 = Reshape (v, to)\nd = Sub (c, m4)\ne = Add (v4, eps)\nr = Sqrt (e)\n"
              "q = Div (d, r)\n"
              "g4 = Reshape (g, to)\nh4 = Reshape (h, to)\np = Mul (q, g4)\ny = Add (p, h4)",
}  # fmt: skip


@pytest.mark.parametrize("form", FROZEN)
def test_frozen_batchnorm_from_constants_of_constants(form):
    """torch's FrozenBatchNorm without optimisation: what is computed from constants is a constant."""
    rng = np.random.default_rng(0)
    tensors = {"g": rng.normal(size=5), "h": rng.normal(size=5), "m": rng.normal(size=5), "v": rng.uniform(0.1, 2, 5),
               "eps": 1e-5, "half": -0.5, "to": np.array([1, -1, 1, 1]), "ax": np.array([1, 2])}  # fmt: skip
    check(graph(CONV + FROZEN[form], **W, **tensors), nodes="Conv", limit=4e-6)


def test_a_constant_that_others_read_too():
    """The scale is read by two chains and is an output: it stays for those who need it."""
    text = CONV + "p = Mul (c, k)\ny = Add (p, l)\n[d] z = Conv (x, w, b)\nq = Softmax (z)\nu = Mul (q, k)"
    proto = graph(text, **W, k=constant((5, 1, 1)), l=constant((5, 1, 1), "ll"), outputs=("y", "u", "k"))
    result = check(proto, nodes="Conv Conv Softmax Mul", left=["activation-between"])
    assert {t.name for t in result.model.graph.initializer} >= {"k", "w", "b"}


LEGACY = [
    ("broadcast = 1, axis = 1", (5,), 1), ("broadcast = 1, axis = 3", (6,), 0), ("broadcast = 1", (6,), 0),
    ("broadcast = 1", (5, 1, 1), 1), ("", (2, 5, 6, 6), 0), ("broadcast = 1, axis = 0", (2,), 0),
    ("broadcast = 1, axis = 1", (5, 6), 0), ("broadcast = 1", (), 1), ("broadcast = 1, axis = 1", (5, 1, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "k", "folds"), LEGACY, ids=str)
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
def test_legacy_broadcasting(op, attributes, k, folds):
    """Below opset 7 the attribute axis says where the constant lies; the last axes count only without it."""
    text = f"[conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)\n[m] y = {op} <{attributes}> (c, k)"
    proto = graph(text, **W, k=constant(k), opset=6)
    check(proto, folded=folds, left=["not-per-map"] * (1 - folds), runs=False)


def test_legacy_axis_is_not_the_last_one():
    """x is square: aligned at the end, (6,) would be the width, but axis = 1 says maps."""
    text = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\ny = Mul <broadcast = 1, axis = 1> (c, k)"
    proto = graph(text, w=(6, 4, 3, 3), k=constant((6,)), opset=6)
    result = check(proto, nodes="Conv", runs=False)
    before, after = initializer(proto, "w"), initializer(result.model, result.model.graph.node[0].input[1])
    assert np.array_equal(after, before * initializer(proto, "k").reshape(6, 1, 1, 1))


@pytest.mark.parametrize(
    ("op", "x", "dtype"), [("Add (c, k)", (2, 4), np.int64), ("Mul (c, k)", (2, 4), np.int32)], ids=["int64", "int32"]
)
def test_integers_are_nobodys_feature_maps(op, x, dtype):
    """Sums of integers are no sites."""
    proto = graph(f"c = Identity (x)\ny = {op}", x, dtype=dtype, k=np.ones(4, dtype))
    assert not check(proto, folded=0, sources="all").report.sites


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_a_divisor_that_is_no_number(value):
    """Div by 0 and products with NaN or infinity are no map; Mul by 0 is one, and gives dead maps."""
    k = np.array([1, value, 2, 3, 4]).reshape(5, 1, 1)
    check(graph(CONV + "y = Div (c, k)", **W, k=k), folded=value == np.inf, left=["non-finite"] * (value != np.inf))
    result = check(graph(CONV + "y = Mul (c, k)", **W, k=k), folded=value == 0, left=["non-finite"] * (value != 0))
    assert value != 0 or "dead" in str(result.folded[0].notes)
