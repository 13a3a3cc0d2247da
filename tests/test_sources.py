"""--sources: BatchNormalization alone, what is like one, or every exact chain."""

import re

import numpy as np
import pytest

from tests.conftest import ops
from tests.folding import check, fold, graph

SCALE = np.array([0.5, -2, 3, 1.5])
OUTSIDE = ["outside-sources"]
# text, x, what folds under bn, affine, all, and the codes of what stays under affine and all
TABLE = {
    "batchnorm_conv": ("c = Conv (x, w)\ny = BN <maps = 4> (c)", (2, 4, 6, 6), (1, 1, 1), [], []),
    "batchnorm_gemm": ("c = Gemm (x, m)\ny = BN <maps = 4> (c)", (2, 4), (1, 1, 1), [], []),
    "batchnorm_before_matmul": ("c = BN <maps = 4> (x)\ny = MatMul (c, m)", (2, 4), (1, 1, 1), [], []),
    "mul_conv": ("c = Conv (x, w)\ny = Mul (c, k)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "add_conv": ("c = Conv (x, w)\ny = Add (c, k)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "scalar_mul_conv": ("c = Conv (x, w)\ny = Mul (c, h)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "scalar_add_conv": ("c = Conv (x, w)\ny = Add (h, c)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "neg_conv": ("c = Conv (x, w)\ny = Neg (c)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "mul_before_conv": ("c = Mul (x, k)\ny = Conv (c, w)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "scalar_before_conv": ("c = Div (x, h)\ny = Conv (c, w)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "add_before_conv": ("c = Sub (x, k)\ny = Conv (c, w)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "mul_conv_transpose": ("c = ConvTranspose (x, w)\ny = Mul (c, k)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "through_relu": ("c = Conv (x, w)\nr = Relu (c)\ny = Mul (r, h)", (2, 4, 6, 6), (0, 1, 1), [], []),
    "mul_gemm": ("c = Gemm (x, m)\ny = Mul (c, v)", (2, 4), (0, 1, 1), [], []),
    "div_matmul": ("c = MatMul (x, m)\ny = Div (c, v)", (2, 3, 4), (0, 1, 1), [], []),
    "mul_add_matmul": ("c = MatMul (x, m)\nd = Mul (c, v)\ny = Add (d, v)", (2, 3, 4), (0, 1, 1), [], []),
    "scalar_gemm": ("c = Gemm (x, m)\ny = Mul (c, h)", (2, 4), (0, 0, 1), [], []),
    "scalar_matmul": ("c = MatMul (x, m)\ny = Div (c, h)", (2, 3, 4), (0, 0, 1), [], []),
    "scalar_and_vector_gemm": ("c = Gemm (x, m)\nd = Mul (c, h)\ny = Mul (d, v)", (2, 4), (0, 1, 1), [], []),
    "add_gemm": ("c = Gemm (x, m)\ny = Add (c, v)", (2, 4), (0, 0, 1), ["outside-sources"], []),
    "mul_before_matmul": ("c = Mul (x, v)\ny = MatMul (c, m)", (2, 3, 4), (0, 0, 1), ["outside-sources"], []),
    "mul_before_gemm": ("c = Mul (x, v)\ny = Gemm (c, m)", (2, 4), (0, 0, 1), ["outside-sources"], []),
    "mul_layernorm": ("c = LayerNormalization (x, v, v)\ny = Mul (c, v)", (2, 3, 4), (0, 0, 1), OUTSIDE, []),
    "conv_and_gemm": (
        "c = Conv (x, w)\ng = GlobalAveragePool (c)\nf = Flatten (g)\nd = Mul (f, v)\ny = Gemm (d, m)",
        (2, 4, 6, 6), (0, 1, 1), [], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_what_each_choice_folds(case):
    """bn: BatchNormalization everywhere and nothing else; affine: what the table says; all: all that is exact."""
    text, x, counts, affine, everything = TABLE[case]
    held = {"w": (4, 4, 3, 3), "m": (4, 4), "k": SCALE.reshape(4, 1, 1), "v": SCALE, "h": np.array(0.5)}
    used = set(re.findall(r"\b\w\b", text))
    proto = graph(text, x, **{name: value for name, value in held.items() if name in used})
    for sources, folded, left in zip(("bn", "affine", "all"), counts, ([], affine, everything), strict=True):
        check(proto, folded=folded, left=left, limit=4e-6, sources=sources)
    default, chosen = fold(proto), fold(proto, sources="affine")
    assert default.model == chosen.model
    for site in default.refused:
        assert site.code != "outside-sources" or "--sources all" in site.help


def gelu(source: str, form: str, out: str) -> str:
    """GELU of `source`, as exporters write it."""
    forms = {
        "last": "g1 = Div ({0}, r2)\ng2 = Erf (g1)\ng3 = Add (g2, one)\ng4 = Mul ({0}, g3)\n{1} = Mul (g4, half)",
        "swapped": "g1 = Mul ({0}, r2)\ng2 = Erf (g1)\ng3 = Add (one, g2)\ng4 = Mul (g3, {0})\n{1} = Mul (half, g4)",
        "first": "g1 = Div ({0}, r2)\ng2 = Erf (g1)\ng3 = Add (g2, one)\ng4 = Mul ({0}, half)\n{1} = Mul (g4, g3)",
        "middle": "g1 = Div ({0}, r2)\ng2 = Erf (g1)\ng3 = Add (g2, one)\ng4 = Mul (g3, half)\n{1} = Mul ({0}, g4)",
        "tanh": "g0 = Mul ({0}, {0})\ng5 = Mul (g0, {0})\ng6 = Mul (g5, c3)\ng7 = Add ({0}, g6)\ng1 = Mul (g7, r2)\n"
                "g2 = Tanh (g1)\ng3 = Add (g2, one)\ng4 = Mul ({0}, g3)\n{1} = Mul (g4, half)",
    }  # fmt: skip
    return forms[form].format(source, out)


GELU = {"r2": np.array(1.4142135), "one": np.array(1.0), "half": np.array(0.5), "c3": np.array(0.044715)}


def numbers_in(text: str):
    """The constants of GELU that the form reads."""
    return {name: value for name, value in GELU.items() if name in text}


@pytest.mark.parametrize("form", ["last", "swapped", "first", "middle", "tanh"])
@pytest.mark.parametrize("behind", ["Conv (g, w)", "MatMul (g, m)"])
def test_the_numbers_of_a_gelu_stay(form, behind):
    """In front of MatMul and Conv alike: GELU is one node to runtimes as long as its 0.5 is there."""
    body = gelu("c", form, "g")
    text = f"{'c = Conv (x, w)' if 'Conv' in behind else 'c = MatMul (x, m)'}\n{body}\ny = {behind}"
    weights = {"w": (4, 4, 1, 1)} if "Conv" in behind else {"m": (4, 4)}
    proto = graph(text, (2, 4, 4, 4), **weights, **numbers_in(body))
    check(proto, folded=0)
    result = fold(proto, sources="all")
    assert len(result.folded) == (form in ("last", "swapped", "tanh"))


def test_a_batchnorm_beside_a_gelu_folds():
    """The pattern protects the GELU's numbers, not a BatchNormalization behind it."""
    body = gelu("c", "last", "g")
    text = f"c = Conv (x, w)\n{body}\nn = BN <maps = 4> (g)\ny = Conv (n, v)"
    proto = graph(text, w=(4, 4, 1, 1), v=(4, 4, 1, 1), **numbers_in(body))
    result = check(proto, limit=4e-6)
    assert ops(result.model).count("Mul") == ops(proto).count("Mul")
    assert ops(result.model).count("Erf") == 1


LAYER_NORM = ("u = ReduceMean <axes = [-1]> (x)\nd = Sub (x, u)\np = Pow (d, two)\nq = ReduceMean <axes = [-1]> (p)\n"
              "e = Add (q, eps)\nr = Sqrt (e)\n{}\ng = Mul (z, gamma)\nb = Add (g, beta)\ny = {}")  # fmt: skip


@pytest.mark.parametrize("division", ["z = Div (d, r)", "i = Reciprocal (r)\nz = Mul (d, i)"])
@pytest.mark.parametrize("behind", ["MatMul (b, m)", "Conv (t, w)"])
def test_gamma_and_beta_of_a_written_out_layernorm_stay(division, behind):
    """In front of a MatMul, and of a Conv behind a Transpose."""
    text = LAYER_NORM.format(division, "MatMul (b, m)")
    if "Conv" in behind:
        text = text.replace("y = MatMul (b, m)", "t = Transpose <perm = [0, 2, 1]> (b)\ny = Conv (t, w)")
    weights = {"w": (5, 4, 1)} if "Conv" in behind else {"m": (4, 5)}
    proto = graph(text, (2, 3, 4), two=np.array(2.0), eps=np.array(1e-5), gamma=SCALE, beta=SCALE, **weights)
    check(proto, folded=0, left=["outside-sources"])
    check(proto, folded=1, left=["producer-cannot-absorb"], sources="all", limit=4e-6)
