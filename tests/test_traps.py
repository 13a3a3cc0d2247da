"""What other tools get wrong: the graphs of the survey's part B, by their names there, as they should come out.

x is (1, 4, 8, 8) and a Conv 3x3 with pads 1 unless the case says otherwise.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import initializer, ops, run, tensor
from tests.folding import check, fold, graph, is_valid

X = (1, 4, 8, 8)
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\n"
CONVB = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)\n"
BN = "y = BN <maps = 4> (c)"
W = {"w": (4, 4, 3, 3)}
WB = W | {"b": (4,)}
S4 = np.array([2.0, -0.5, 3.0, 1.5])


def bn(gamma, var, *, beta=0.0, mean=0.0, maps=4, dtype=np.float32):
    """Parameters g, be, m, v of which each is the same for all maps."""
    values = {"g": gamma, "be": beta, "m": mean, "v": var}
    return {name: tensor(name, np.full(maps, value), dtype) for name, value in values.items()}


RAW = "y = BatchNormalization <epsilon = {}> (c, g, be, m, v)"

# name: nodes, tensors, what else graph() takes, the operators left
FOLDS = {
    "conv_emptybias": (CONV.replace("w)", 'w, "")') + BN, W, {}, "Conv"),
    "gemm_emptyC": ('c = Gemm (x, w, "")\n' + BN, {"w": (4, 4)}, {"x": (3, 4)}, "Gemm"),
    "gemm_same_wb_trap": ("c = Gemm (x, w, w)\n" + BN, {"w": (4, 4)}, {"x": (4, 4)}, "Gemm"),
    "gemm_alpha0beta": (
        "c = Gemm <alpha = 0.0, beta = 2.0> (x, w, b)\n" + BN, {"w": (4, 4), "b": (4,)}, {"x": (3, 4)}, "Gemm"),
    "gemm_beta2": ("c = Gemm <beta = 2.0> (x, w, b)\n" + BN, {"w": (4, 4), "b": (4,)}, {"x": (3, 4)}, "Gemm"),
    "matmul_add_bn": (
        "m = MatMul (x, w)\nc = Add (m, b)\n" + BN, {"w": (4, 4), "b": (4,)}, {"x": (3, 4)}, "MatMul Add"),
    "matmul_reshape_transpose_bn": (
        "m = MatMul (x, w)\nt = Transpose <perm = [0, 2, 1]> (m)\nc = Reshape (t, to)\n" + BN,
        {"w": (5, 4), "to": np.array([0, 4, 2, 3])}, {"x": (2, 6, 5)}, "MatMul Transpose Reshape Add"),
    "convT": ("c = ConvTranspose (x, w)\n" + BN, {"w": (4, 4, 3, 3)}, {}, "ConvTranspose"),
    "convT_g2": ("c = ConvTranspose <group = 2> (x, w)\n" + BN, {"w": (4, 2, 3, 3)}, {}, "ConvTranspose"),
    "convT_1d": (
        "c = ConvTranspose <strides = [2]> (x, w)\n" + BN, {"w": (4, 4, 3)}, {"x": (1, 4, 9)}, "ConvTranspose"),
    "conv_3d": ("c = Conv (x, w)\n" + BN, {"w": (4, 4, 3, 3, 3)}, {"x": (1, 4, 5, 5, 5)}, "Conv"),
    "conv_mul_add_left": (
        CONV + "p = Mul (k, c)\ny = Add (h, p)", W | {"k": (1, 4, 1, 1), "h": (1, 4, 1, 1)}, {}, "Conv"),
    "conv_mul_scalar_1": (CONV + "y = Mul (c, k)", W | {"k": np.array([2.5])}, {}, "Conv"),
    "conv_mul_rank3": (CONV + "y = Mul (c, k)", W | {"k": (4, 1, 1)}, {}, "Conv"),
    "conv_rsub": (CONV + "y = Sub (k, c)", W | {"k": (4, 1, 1)}, {}, "Conv"),
    "conv_div_neg": (CONV + "n = Neg (c)\ny = Div (n, k)", W | {"k": S4.reshape(4, 1, 1)}, {}, "Conv"),
    "conv_add_with_bias": (CONVB + "y = Add (c, k)", WB | {"k": (4, 1, 1)}, {}, "Conv"),
    "conv_identity_dropout_bn": (
        CONV + "i = Identity (c)\nd = Dropout (i)\ny = BN <maps = 4> (d)", W, {}, "Conv Identity Dropout"),
    "mul_before_padded_conv": (
        "n = Mul (x, k)\ny = Conv <pads = [1, 1, 1, 1]> (n, w)", W | {"k": (4, 1, 1)}, {}, "Conv"),
    "add_before_conv": ("n = Add (x, k)\ny = Conv (n, w)", W | {"k": (4, 1, 1)}, {}, "Conv"),
    "bn_conv_1x1": ("n = BN <maps = 4> (x)\ny = Conv (n, w)", {"w": (4, 4, 1, 1)}, {}, "Conv"),
    "bn_conv_grouped": ("n = BN <maps = 4> (x)\ny = Conv <group = 2> (n, w)", {"w": (6, 2, 3, 3)}, {}, "Conv"),
    "bn_conv_nopad": (
        "n = BatchNormalization (x, g, be, m, v)\ny = Conv (n, w)",
        W | bn(1.5, 1.0, beta=0.5) | {"g": np.array([0.0, 1, -2, 3])}, {}, "Conv"),
    "bn_flatten_gemm": (
        "n = BN <maps = 4> (x)\nf = Flatten (n)\ny = Gemm (f, w)",
        {"w": (16, 3)}, {"x": (2, 4, 2, 2)}, "Flatten Gemm"),
    "nhwc_flatten_gemm": (
        "n = BN <maps = 4> (x)\nt = Transpose <perm = [0, 2, 3, 1]> (n)\nf = Reshape (t, to)\ny = Gemm (f, w)",
        {"w": (16, 3), "to": np.array([0, -1])}, {"x": (2, 4, 2, 2)}, "Transpose Reshape Gemm"),
    "concat_last_axis_of_two_convs": (
        "a = Conv (x, w)\nd = Conv (x, u)\nc = Concat <axis = -3> (a, d)\ny = BN <maps = 8> (c)",
        W | {"u": (4, 4, 3, 3)}, {}, "Conv Conv Concat"),
    "add_of_two_convs": (
        "a = Conv (x, w)\nd = Conv (x, u)\nc = Add (a, d)\n" + BN, W | {"u": (4, 4, 3, 3)}, {}, "Conv Conv Add"),
    "unsqueeze_bn_squeeze": (
        "m = MatMul (x, w)\nu = Unsqueeze (m, ax)\nn = BN <maps = 4> (u)\ny = Squeeze (n, ax)",
        {"w": (4, 4), "ax": np.array([2])}, {"x": (3, 4)}, "Gemm Unsqueeze Squeeze"),
    "mul_nhwc": (
        CONV + "t = Transpose <perm = [0, 2, 3, 1]> (c)\np = Mul (t, k)\ny = Add (p, k)",
        W | {"k": (4,)}, {}, "Conv Transpose"),
    "fp16_eps": (
        CONV + RAW.format("1e-8"), {"w": np.full((4, 4, 3, 3), 0.01)} | bn(1, 0, dtype=np.float16),
        {"dtype": np.float16}, "Conv"),
    "mixed15_f16x_f32bn": (CONV + RAW.format("1e-5"), W | bn(1.5, 2, beta=1), {"dtype": np.float16}, "Conv"),
    "no_epsilon_small_variance": (
        CONV + "y = BatchNormalization (c, g, be, m, v)", W | bn(1, 1e-6), {}, "Conv"),
}  # fmt: skip
FOLDED = {"mul_before_padded_conv": 1, "conv_identity_dropout_bn": 1}

# name: nodes, tensors, what else graph() takes, codes
STAYS = {
    "conv_mul_lastaxis_trap": (CONV + "y = Mul (c, k)", W | {"k": S4}, {"x": (1, 4, 8, 4)}, ["not-per-map"]),
    "conv_add_lastaxis_trap": (CONV + "y = Add (c, k)", W | {"k": S4}, {"x": (1, 4, 8, 4)}, ["not-per-map"]),
    "conv1d_mul_lastaxis_trap": (
        "c = Conv (x, w)\ny = Mul (c, k)", {"w": (4, 4, 1), "k": S4}, {"x": (1, 4, 4)}, ["not-per-map"]),
    "convT_mul_lastaxis_trap": (
        "c = ConvTranspose (x, w)\ny = Mul (c, k)",
        {"w": (4, 4, 1, 1), "k": S4}, {"x": (1, 4, 8, 4)}, ["not-per-map"]),
    "conv_mul_batchaxis_trap": (CONV + "y = Mul (c, k)", W | {"k": S4.reshape(4, 1, 1, 1)}, {}, ["not-per-map"]),
    "matmul3d_bn_trap": ("c = MatMul (x, w)\n" + BN, {"w": (4, 4)}, {"x": (2, 4, 4)}, ["not-per-map"]),
    "matmul_transpose_trap": (
        "m = MatMul (x, w)\nc = Transpose <perm = [1, 0]> (m)\n" + BN, {"w": (5, 4)}, {"x": (4, 5)}, ["not-per-map"]),
    "matmul_reshape_trap": (
        "m = MatMul (x, w)\nc = Reshape (m, to)\n" + BN, {"w": (5, 4), "to": np.array([2, 4, 2])}, {"x": (4, 5)},
        ["not-per-map"]),
    "linear_on_NLD_bn_on_L": ("c = MatMul (x, w)\n" + BN, {"w": (4, 4)}, {"x": (3, 4, 4)}, ["not-per-map"]),
    "bn_conv_same_upper_without_pads": (
        'n = BN <maps = 4> (x)\ny = Conv <auto_pad = "SAME_UPPER"> (n, w)', W, {}, ["shift-meets-padding"]),
    "bn_conv_pad": ("n = BN <maps = 4> (x)\ny = Conv <pads = [1, 1, 1, 1]> (n, w)", W, {}, ["shift-meets-padding"]),
    "negative_gamma_relu_conv": (
        "c = Mul (x, k)\nr = Relu (c)\ny = Conv (r, w)", W | {"k": S4.reshape(4, 1, 1)}, {}, ["negative-scale"]),
    "fp16_fold_overflow": (
        CONV + RAW.format("1e-5"), {"w": np.full((4, 4, 3, 3), 600.0)} | bn(150, 1, dtype=np.float16),
        {"dtype": np.float16}, ["overflow"]),
    "fp32_fold_overflow": (
        CONV + RAW.format("1e-5"), {"w": np.full((4, 4, 3, 3), 1e30)} | bn(1e10, 1), {}, ["overflow"]),
    "conv_two_bn": (CONV + BN + "\nz = BN <maps = 4> (c)", W, {"outputs": ("y", "z")}, ["producer-shared"] * 2),
    "conv_output_used": (CONV + BN + "\nz = Relu (c)", W, {"outputs": ("y", "z")}, ["producer-shared"]),
    "conv_is_output": (CONV + BN, W, {"outputs": ("y", "c")}, ["producer-is-output"]),
    "dynw_conv_mul": (CONV + "y = Mul (c, k)", {"k": (4, 1, 1)}, {"inputs": W}, ["weights-not-constant"]),
    "dynbias_conv_mul": (
        CONVB + "y = Mul (c, k)", W | {"k": (4, 1, 1)}, {"inputs": {"b": (4,)}}, ["weights-not-constant"]),
    "rank2_conv_bn_wrongC": (CONV + "y = BN <maps = 3> (c)", W, {"y": X}, ["shape-mismatch"]),
    "var_negative": (CONV + RAW.format("1e-5"), W | bn(1, -1e-3), {}, ["bad-variance"]),
    "var_nan": (CONV + RAW.format("1e-5"), W | bn(1, np.nan), {}, ["non-finite"]),
    "conv_relu_bn": (CONV + "r = Relu (c)\ny = BN <maps = 4> (r)", W, {}, ["activation-between"]),
    "bn6_istest0": (CONV + "y = BN <maps = 4, is_test = 0> (c)", W, {"opset": 6}, ["training-mode"]),
    "reshape_mixes_then_gemm": (
        "n = BN <maps = 4> (x)\nf = Reshape (n, to)\ny = Gemm (f, w)",
        {"w": (8, 3), "to": np.array([-1, 8])}, {"x": (2, 4, 3, 2)}, ["not-per-map"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    """What other tools decline or break, folded with the same outputs."""
    text, tensors, more, nodes = FOLDS[name]
    half = more.get("dtype") is np.float16
    count = text.count("BN ") + ("BatchNormalization" in text) or 1
    check(graph(text, **({"x": X} | more), **tensors), folded=count, nodes=nodes, limit=3e-3 if half else 4e-6)


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    """What other tools fold wrongly, or what nobody could fold: byte for byte, with its code."""
    text, tensors, more, codes = STAYS[name]
    assert all(
        site.message for site in check(graph(text, **({"x": X} | more), **tensors), folded=0, left=codes).refused
    )


def test_bn6_istest1():
    """The old inference form folds."""
    check(graph(CONV + "y = BN <maps = 4, is_test = 1> (c)", X, **W, opset=6), nodes="Conv", runs=False)


@pytest.mark.parametrize("opset", [9, 14])
def test_training_form(opset):
    """`bn9_extra_outs`, `training1`: extra outputs or training_mode=1, unused or not."""
    outs, attribute = ("y, rm, rv", ", training_mode = 1") if opset == 14 else ("y, rm, rv, sm, sv", "")
    proto = graph(
        CONV + f"{outs} = BatchNormalization <epsilon = 1e-5{attribute}> (c, g, be, m, v)",
        X,
        **W,
        **bn(1, 1),
        opset=opset,
    )
    check(proto, folded=0, left=["training-mode"])


def test_bn8_spatial0():
    """Parameters per activation: none fits a Conv; a Gemm behind a Flatten takes them."""
    shape = (4, 2, 2)
    parameters = {"g": shape, "be": shape, "m": shape, "v": tensor("v", np.full(shape, 2.0))}
    text = "c = Conv (x, w)\ny = BatchNormalization <spatial = 0> (c, g, be, m, v)"
    check(graph(text, (1, 4, 4, 4), **W, **parameters, opset=8), folded=0, left=["not-per-map"], runs=False)
    text = "n = BatchNormalization <spatial = 0> (x, g, be, m, v)\nf = Flatten (n)\ny = Gemm (f, k, b)"
    result = check(
        graph(text, (3, *shape), k=(16, 5), b=(5,), **parameters, opset=8), nodes="Flatten Gemm", runs=False
    )
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    values = {
        name: initializer(graph("y = Add (x, x)", **parameters), name).astype(np.float64) for name in parameters
    }
    n = values["g"] * (x - values["m"]) / np.sqrt(values["v"] + 1e-5) + values["be"]
    held = initializer(graph("y = Add (x, x)", k=(16, 5)), "k"), initializer(graph("y = Add (x, x)", b=(5,)), "b")
    assert np.allclose(run(result.model, {"x": x})[0], n.reshape(3, -1) @ held[0] + held[1], atol=1e-4)


@pytest.mark.parametrize("name", ["w_bias", "y_bias", "y_weight", "w_folded", "c_folded"])
def test_name_collisions(name):
    """`name_collision_W_bias`, `slim_name_collision`, `slim_collision_activation`: a taken name stays its owner's."""
    tensor_ = graph(CONV + BN + f"\nz = Relu ({name})", X, **W, **{name: (2, 2)}, outputs=("y", "z"))
    activation = graph(CONV + BN + f"\n{name} = Relu (x)\nz = Neg ({name})", X, **W, outputs=("y", "z"))
    for proto in (tensor_, activation):
        assert is_valid(check(proto, limit=4e-6, sources="bn").model)


def test_init_direct_graph_output_and_overridable():
    """`init_direct_graph_output`: w is an output and keeps its numbers; `w_overridable`: an input is not removed."""
    proto = graph(CONV + BN, X, **W, outputs=("y", "w"))
    check(proto, limit=4e-6)
    proto = graph(CONV + BN, X, **W)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    check(proto, folded=0, left=["overridable-initializer"])
    result = fold(proto, freeze_inputs=True)
    assert (list(result.frozen), [v.name for v in result.model.graph.input]) == (["w"], ["x"])


def test_sparse_w():
    """A sparse weight is left alone by name, not by a crash."""
    proto = graph(CONV + BN, X)
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("w_i", TensorProto.INT64, [2], [0, 40])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4, 3, 3]))
    check(proto, folded=0, left=["sparse-weight"])


def test_shared_weights_and_parameters():
    """One W on two inputs, one set of parameters for two maps: the plain Conv keeps the original."""
    text = (CONV + "d = Conv (u, w)\ny = BatchNormalization (c, g, be, m, v)\n"
            "z = BatchNormalization (d, g, be, m, v)\no = Conv (u, w)\nq = Mul (o, k)\np = Conv (u, w)")  # fmt: skip
    proto = graph(
        text, X, **W, **bn(2, 3, beta=1), k=(4, 1, 1), inputs={"u": (2, 4, 5, 5)}, outputs=("y", "z", "q", "p")
    )
    result = check(proto, folded=3, nodes="Conv Conv Conv Conv", limit=4e-6)
    assert result.model.graph.node[-1].input[1] == "w"


def test_meta():
    """value_info of what vanished goes, quantization annotations of what stays stay, no opset is added."""
    proto = graph(CONV + BN, X, **W)
    proto.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, X))
    annotation = onnx.TensorAnnotation(tensor_name="x")
    proto.graph.quantization_annotation.append(annotation)
    model = check(proto, limit=4e-6).model
    assert [v.name for v in model.graph.value_info if v.name == "c"] == []
    assert list(model.graph.quantization_annotation) == [annotation]
    assert list(model.opset_import) == list(proto.opset_import)


def test_fp32_cancel():
    """Bias 1e5 and mean 1e5 cancel: the folded model is the one that is right, by float64."""
    held = {"w": tensor("w", np.random.default_rng(0).normal(size=(4, 4, 1, 1)) * 1e-3), "b": np.full(4, 1e5)}
    proto = graph("c = Conv (x, w, b)\n" + RAW.format("1e-5"), X, **held, **bn(1, 1e-6, mean=1e5))
    result = fold(proto)
    assert ops(result.model) == ["Conv"]
    x = np.random.default_rng(1).normal(size=X).astype(np.float32)
    exact = np.einsum("oi,nihw->nohw", initializer(proto, "w")[:, :, 0, 0].astype(np.float64), x) / np.sqrt(
        float(np.float32(1e-6)) + float(np.float32(1e-5))
    )
    scale = np.abs(exact).max()
    assert (
        np.abs(run(result.model, {"x": x})[0] - exact).max()
        < 1e-5 * scale
        < np.abs(run(proto, {"x": x})[0] - exact).max()
    )


def test_ir3_stays_valid_at_its_version():
    """`ir3`: initializers are inputs; the folded model passes the checker at IR version 3."""
    proto = graph(CONV + BN, X, **W, opset=8, ir_version=3, y=X)
    for held in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(held.name, TensorProto.FLOAT, list(held.dims)))
    result = check(proto, nodes="Conv", limit=4e-6)
    assert result.model.ir_version == 3
    onnx.checker.check_model(result.model, full_check=True)
