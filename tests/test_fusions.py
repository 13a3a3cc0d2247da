"""Folding does not get in the way of what onnxruntime fuses: its extended optimisation is never left worse off."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.conftest import MODELS
from tests.folding import assert_same_values, fold, graph

FUSED = (  # not FusedMatMul: that is a MatMul with a factor, and a MatMul once the factor is folded
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "FusedConv",
    "Gelu",
    "HardSwish",
    "LayerNormalization",
    "MultiHeadAttention",
    "QuickGelu",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
)
REAL = ["bert", "bert_opset17", "keras_densenet121", "keras_efficientnet_b0", "keras_mobilenet_v2", "levit",
        "mobilenet_v3", "mobilenet_v3_decomposed", "vit", "vit_opset17"]  # fmt: skip


def optimised(proto, folder, name):
    """How many nodes of each operator onnxruntime's extended optimisation leaves."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / name)
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / name).graph.node)


def assert_no_worse(proto, folder, **options):
    """No more nodes, and no fewer fused ones, than of the model that was not folded."""
    after = fold(proto, **options).model
    before, folded = optimised(proto, folder, "a.onnx"), optimised(after, folder, "b.onnx")
    assert {op: folded[op] for op in FUSED if folded[op] < before[op]} == {}
    assert folded.total() <= before.total()
    return before, after


@pytest.mark.parametrize("name", REAL)
def test_real_models(name, tmp_path):
    """Transformers, HardSwish and GELU networks, LeViT, whose MatMuls have no biases, and Keras exports."""
    assert_no_worse(onnx.load(MODELS / f"{name}.onnx"), tmp_path)


def test_levit(tmp_path):
    """Each Add that a MatMul of three axes leaves stands where its map stood: onnxruntime makes no Reshapes of it."""
    proto = onnx.load(MODELS / "levit.onnx")
    before, after = optimised(proto, tmp_path, "a.onnx"), optimised(fold(proto).model, tmp_path, "b.onnx")
    assert before["BatchNormalization"] > 30
    assert after["BatchNormalization"] == 0
    assert after["Reshape"] <= before["Reshape"]
    assert after.total() < before.total()


# in front of the pattern, and behind it, stands a MatMul with its bias, or a 1x1 Conv; {0} reads a, {1} writes z
GELUS = {
    "erf": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a, a3)\nz = Mul (a4, half)",
    "erf_half_first": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a, half)\nz = Mul (a4, a3)",
    "erf_half_middle": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a3, half)\nz = Mul (a, a4)",
    "erf_reciprocal": "a1 = Mul (a, i2)\na2 = Erf (a1)\na3 = Add (one, a2)\na4 = Mul (a3, a)\nz = Mul (half, a4)",
    "tanh": "a0 = Pow (a, three)\na1 = Mul (a0, c3)\na2 = Add (a, a1)\na3 = Mul (a2, pi)\na4 = Tanh (a3)\n"
            "a5 = Add (a4, one)\na6 = Mul (a, half)\nz = Mul (a6, a5)",
    "tanh_half_last": "a0 = Mul (a, a)\na1 = Mul (a0, a)\na2 = Mul (c3, a1)\na3 = Add (a, a2)\na4 = Mul (pi, a3)\n"
                      "a5 = Tanh (a4)\na6 = Add (one, a5)\na7 = Mul (a, a6)\nz = Mul (a7, half)",
    "quick": "a1 = Mul (a, quick)\na2 = Sigmoid (a1)\nz = Mul (a, a2)",
    "silu": "a1 = Sigmoid (a)\nz = Mul (a, a1)",
    "hard_sigmoid": "a1 = HardSigmoid <alpha = 0.16666667, beta = 0.5> (a)\nz = Mul (a, a1)",
    "hard_swish": "z = HardSwish (a)",
    "hard_written": "a1 = Add (a, three)\na2 = Clip (a1, zero, six)\na3 = Mul (a, a2)\nz = Div (a3, six)",
    "hard_written_sixth": "a1 = Add (a, three)\na2 = Clip (a1, zero, six)\na3 = Div (a2, six)\nz = Mul (a, a3)",
    "gelu_then_scale": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a, a3)\na5 = Mul (a4, half)\n"
                       "z = Mul (a5, two)",
    "gelu_with_two_halves": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a, a3)\n"
                            "a5 = Mul (a4, half)\nz = Mul (a5, half)",
    "gelu_then_add": "a1 = Div (a, r2)\na2 = Erf (a1)\na3 = Add (a2, one)\na4 = Mul (a, a3)\na5 = Mul (a4, half)\n"
                     "z = Add (a5, two)",
}  # fmt: skip
NUMBERS = {"r2": 1.4142135381698608, "i2": 0.7071067690849304, "one": 1.0, "half": 0.5, "three": 3.0, "c3": 0.044715,
           "pi": 0.7978845834732056, "quick": 1.702, "zero": 0.0, "six": 6.0, "two": 2.0}  # fmt: skip
LAYER_NORM = ("{1}u = ReduceMean <axes = [-1]> ({0})\n{1}d = Sub ({0}, {1}u)\n{1}p = Pow ({1}d, two)\n"
              "{1}q = ReduceMean <axes = [-1]> ({1}p)\n{1}e = Add ({1}q, eps)\n{1}r = Sqrt ({1}e)\n"
              "{1}z = Div ({1}d, {1}r)\n{1}g = Mul ({1}z, gamma)\n{1} = Add ({1}g, beta)")  # fmt: skip
WEIGHTS = {"v": (8, 8), "b": (8,), "w": (8, 8, 1), "w2": (8, 8, 1, 1), "gamma": (8,), "beta": (8,),
           **{f"v{name}": (8, 8) for name in "qkj"}, **{f"w{name}": (8, 8, 1) for name in "qkj"},
           "root": np.array(2.0), "eps": np.array(1e-5), "heads": np.array([0, 0, 2, 4]), "flat": np.array([0, 0, 8]),
           **{name: np.array(value) for name, value in NUMBERS.items()}}  # fmt: skip


def network(text, x, opset=14):
    """A model of the lines, with the constants among WEIGHTS that they read."""
    used = {
        name.strip(" ()\n")
        for line in text.splitlines()
        for name in line.split("(", 1)[1].replace(")", "").split(",")
    }
    return graph(text, x, opset=opset, **{name: value for name, value in WEIGHTS.items() if name in used})


@pytest.mark.parametrize("around", ["MatMul", "Gemm", "Conv", "Conv2d"])
@pytest.mark.parametrize("form", GELUS)
def test_activations(form, around, tmp_path):
    """GELU by erf and tanh, QuickGELU, SiLU, HardSwish, written out or not, between two linear operators."""
    front, behind, x = {
        "MatMul": ("m = MatMul (x, v)\na = Add (m, b)", "n = MatMul (z, v)\ny = Add (b, n)", (2, 3, 8)),
        "Gemm": ("a = Gemm (x, v, b)", "y = Gemm (z, v, b)", (3, 8)),
        "Conv": ("a = Conv (x, w, b)", "y = Conv (z, w, b)", (2, 8, 4)),
        "Conv2d": (
            "c = Conv (x, w2, b)\na = BN <maps = 8> (c)",
            "c2 = Conv (z, w2, b)\ny = BN <maps = 8> (c2)",
            (2, 8, 4, 4),
        ),
    }[around]
    proto = network(f"{front}\n{GELUS[form]}\n{behind}", x)
    _, after = assert_no_worse(proto, tmp_path)
    assert_same_values(proto, after, 5e-6)


@pytest.mark.parametrize("around", ["MatMul", "Conv"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("operator", [False, True])
def test_layer_norms(operator, skip, around, tmp_path):
    """LayerNormalization, written out or not, alone or behind a residual Add, before MatMul and 1x1 Conv."""
    norm = "{1} = LayerNormalization <axis = -1> ({0}, gamma, beta)" if operator else LAYER_NORM
    lines = {
        "MatMul": "m = MatMul (x, v)\na = Add (m, b)\n{sum}\n{norm}\nn = MatMul (z, v)\ny = Add (n, b)",
        "Conv": "t = Transpose <perm = [0, 2, 1]> (x)\nc = Conv (t, w, b)\na = Transpose <perm = [0, 2, 1]> (c)\n"
                "{sum}\n{norm}\no = Transpose <perm = [0, 2, 1]> (z)\ny = Conv (o, w, b)",
    }[around]  # fmt: skip
    text = lines.format(sum="s = Add (x, a)" if skip else "s = Identity (a)", norm=norm.format("s", "z"))
    before, _ = assert_no_worse(network(text, (2, 3, 8), 17 if operator else 14), tmp_path)
    fused = before["LayerNormalization"] + before["SkipLayerNormalization"]
    assert fused == 1 or (around == "Conv" and not skip)  # there onnxruntime moves the Transposes into it first


@pytest.mark.parametrize("project", ["MatMul", "Conv"])
@pytest.mark.parametrize("scaled", ["scores", "query", "query_before_heads", "both"])
def test_attention(scaled, project, tmp_path):
    """The division by the square root, wherever exporters put it, with the projections by MatMul or by 1x1 Conv."""
    lines = []
    for name in "qkj":
        lines.append({"MatMul": f"{name}0 = MatMul (x, v{name})\n{name}1 = Add ({name}0, b)",
                      "Conv": f"{name}t = Transpose <perm = [0, 2, 1]> (x)\n{name}0 = Conv ({name}t, w{name}, b)\n"
                              f"{name}1 = Transpose <perm = [0, 2, 1]> ({name}0)"}[project])  # fmt: skip
        source = f"{name}1"
        if name == "q" and scaled == "query_before_heads":
            lines.append("qs = Mul (q1, half)")
            source = "qs"
        perm = "[0, 2, 3, 1]" if name == "k" else "[0, 2, 1, 3]"
        lines.append(f"{name}2 = Reshape ({source}, heads)\n{name} = Transpose <perm = {perm}> ({name}2)")
    query, key = "q", "k"
    if scaled in ("query", "both"):
        lines.append("qr = Mul (q, half)")
        query = "qr"
    if scaled == "both":
        lines.append("kr = Div (k, root)")
        key = "kr"
    lines.append(f"s0 = MatMul ({query}, {key})")
    lines.append("s1 = Div (s0, root)" if scaled == "scores" else "s1 = Identity (s0)")
    lines.append("s = Softmax <axis = -1> (s1)\no0 = MatMul (s, j)\no1 = Transpose <perm = [0, 2, 1, 3]> (o0)")
    lines.append("o2 = Reshape (o1, flat)\no3 = MatMul (o2, v)\no4 = Add (o3, b)\ny = Add (o4, x)")
    assert_no_worse(network("\n".join(lines), (2, 3, 8)), tmp_path)


def test_the_pattern_is_broken_by_folding_everything(tmp_path):
    """The tests above have teeth: with --sources all, the GELU before a MatMul is one no longer."""
    text = f"m = MatMul (x, v)\na = Add (m, b)\n{GELUS['erf']}\nn = MatMul (z, v)\ny = Add (b, n)"
    with pytest.raises(AssertionError, match="Gelu"):
        assert_no_worse(network(text, (2, 3, 8)), tmp_path, sources="all")
