"""The survey's cases 55 to 69 and 88 to 98 where they had no test: numerics that verification has to judge rightly.

`tests/field_cases.toml` says for every case which test proves it; the tests here carry the case's number.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.report.words import meaning
from tests.conftest import Cli, batchnorm_parameters, conv_bn, initializer, model, ops, run, tensor

N = helper.make_node


def with_numbers(proto: ModelProto, **numbers: Any) -> ModelProto:
    """A copy in which initializers hold other numbers, of the same type, spread over the same shape."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for held in copy.graph.initializer:
        if held.name in numbers:
            old = numpy_helper.to_array(held)
            new = np.broadcast_to(np.asarray(numbers[held.name]), old.shape).astype(old.dtype)
            held.CopyFrom(numpy_helper.from_array(new, held.name))
    return copy


def scaled(proto: ModelProto, epsilon: float, **numbers: Any) -> ModelProto:
    """The same with another epsilon too."""
    copy = with_numbers(proto, **numbers)
    copy.graph.node[1].attribute.append(helper.make_attribute("epsilon", epsilon))
    return copy


def unseen(proto: ModelProto, name: str) -> ModelProto:
    """The model with its last value under another name and a Max behind, so that only the outputs can be compared."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.node[-1].output[0] = name
    copy.graph.node.append(N("Max", [name], ["y"]))
    return copy


def half(**numbers: Any) -> ModelProto:
    """x -> Conv -> BatchNormalization -> y in float16, with other numbers where they are given."""
    nodes = conv_bn().graph.node
    held = [tensor("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)), np.float16)]
    held += batchnorm_parameters(4, dtype=np.float16)
    return with_numbers(model(nodes, held, elem_type=TensorProto.FLOAT16), **numbers)


# Numerics


@pytest.mark.parametrize("var", [0.0, 1e-12])
def test_55_tiny_variance_is_folded_and_verified(var: float) -> None:
    """The scale is that of epsilon alone, 316: finite, and equal by site and by outputs."""
    result = bnfold.fold(with_numbers(conv_bn(), var=var))
    assert len(result.folded) == 1
    assert np.isfinite(initializer(result.model, "w_folded")).all()
    assert result.verification
    assert result.verification.runs[0].coverage == "sites"


def test_59_a_scale_of_a_hundred_thousand_is_no_difference() -> None:
    """Outputs near 1e6 that differ by far more than any fixed absolute tolerance: rounding of their scale."""
    result = bnfold.fold(scaled(conv_bn(), 1e-12, var=1e-10))
    assert result.verification
    worst = result.verification.worst
    assert worst is not None
    assert worst.scale > 1e5
    assert worst.max_abs > 1e-3
    assert worst.relative < worst.limit


def cancelling() -> ModelProto:
    """Bias and running mean of 1e5 cancel: float32 loses the result in the original, not in the fold."""
    original = conv_bn(bias=True)
    return with_numbers(original, b=1e5, mean=1e5, w=initializer(original, "w") * np.float32(1e-3))


def test_60_cancellation_in_the_original_is_not_the_folds_fault() -> None:
    """A thousandth of the scale apart, and equal: the site is right by itself, and the report says so."""
    result = bnfold.fold(cancelling())
    assert result.verification
    (judged,) = result.verification.runs
    (output,) = judged.outputs
    assert output.relative > 1e-3
    assert [site.equal for site in judged.sites] == [True]
    assert "each changed value is right by itself" in meaning(output, judged) or "float64" in judged.reason


def test_60_float64_arbitrates_where_no_site_can() -> None:
    """Only the outputs to go by: float64 says that the original's own run is inexact; a wrong bias is different."""
    folded = bnfold.fold(cancelling(), verify=False).model
    found = bnfold.verify(unseen(cancelling(), "h"), unseen(folded, "k"))
    assert (found.verdict, found.runs[0].coverage) == ("equal", "end to end")
    assert "float64" in found.reason
    wrong = with_numbers(folded, b_folded=initializer(folded, "b_folded") + np.float32([1, 0, 0, 0]))
    assert bnfold.verify(unseen(cancelling(), "h"), unseen(wrong, "k")).verdict == "different"


def test_61_65_what_a_half_cannot_hold_is_refused_and_never_equal() -> None:
    """W of 171600 or a bias of 143000: refused. Outputs that are infinite already cannot be verified."""
    weight = bnfold.fold(scaled(half(w=60.0, gamma=30.0, var=1e-4), 1e-5))
    assert [site.code for site in weight.refused] == ["overflow"]
    original = half(w=0.01, gamma=40.0, mean=-3575.0, var=1.0, beta=0.0)
    bias = bnfold.fold(original)
    assert [site.code for site in bias.refused] == ["overflow"]
    assert np.isinf(run(original, {"x": np.zeros((1, 3, 8, 8), np.float16)})[0]).all()
    found = bnfold.verify(original, original)
    assert found.verdict == "not verified"
    assert "infinite" in found.reason
    by_others = model([N("Conv", ["x", "w", "b"], ["y"])], [
        original.graph.initializer[0], tensor("b", [np.inf] * 4, np.float16)
    ], elem_type=TensorProto.FLOAT16)  # fmt: skip
    assert bnfold.verify(original, by_others).verdict != "equal"


def test_63_float16_has_a_limit_of_its_own() -> None:
    """A fold rounded to float16 is further off than float32 may be, and equal; ten roundings more are not."""
    result = bnfold.fold(half())
    assert result.verification
    (output,) = result.verification.outputs
    assert output.limit > 2**-11 > 2e-5
    bias = initializer(result.model, "w_bias")
    wrong = with_numbers(result.model, w_bias=bias * np.float16(1.05))
    assert bnfold.verify(half(), wrong).verdict == "different"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=["mixed", "float64", "bfloat16"])
def test_66_67_68_other_types_are_verified_and_kept(dtype: Any) -> None:
    """float16 with float32 parameters in onnxruntime; float64, bfloat16, for which it has no Conv, by reference."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    parameters = np.float32 if dtype is np.float16 else dtype
    held = [tensor("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)), dtype)]
    held += batchnorm_parameters(4, dtype=parameters)
    original = model(conv_bn().graph.node, held, opset=22, ir_version=10, elem_type=kind)
    result = bnfold.fold(original)
    assert result.verification
    assert result.verification.runs[0].provider == ("CPUExecutionProvider" if dtype is np.float16 else "reference")
    assert ops(result.model) == ["Conv"]
    assert {numpy_helper.to_array(t).dtype for t in result.model.graph.initializer} == {np.dtype(dtype)}


# Verification


def suppressing(threshold: float) -> ModelProto:
    """Boxes b and scores x -> Conv -> BatchNormalization -> s -> NonMaxSuppression -> y (n, 3)."""
    proto = conv_bn((1, 1, 1), x=(1, 1, 6))
    proto.graph.node[1].output[0] = "s"
    proto.graph.initializer.extend([tensor("most", [3], np.int64), tensor("iou", 0.5), tensor("least", threshold)])
    corners = np.random.default_rng(0).uniform(0, 1, (1, 6, 4))
    proto.graph.initializer.append(tensor("b", corners))
    proto.graph.node.append(N("NonMaxSuppression", ["b", "s", "most", "iou", "least"], ["y"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    return proto


@pytest.mark.parametrize("seed", range(3))
def test_90_how_many_boxes_there_are_is_up_to_the_data(seed: int) -> None:
    """Some boxes: equal. None at all: not verified, as nothing was compared; beside other outputs, equal."""
    some, none = suppressing(-100.0), suppressing(1e9)
    assert bnfold.fold(some, seed=seed).verification
    with pytest.raises(bnfold.NotVerified, match="empty"):
        bnfold.fold(none, seed=seed)
    none.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))
    assert bnfold.fold(none, seed=seed).verification


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (("Sqrt", "x"), ("Sqrt", "x"), 0), (("Sqrt", "x"), ("Sqrt", "a"), 1), (("Sqrt", "a"), ("Sqrt", "x"), 1),
        (("Reciprocal", "z"), ("Reciprocal", "z"), 0), (("Reciprocal", "z"), ("Reciprocal", "m"), 1),
    ],
)  # fmt: skip
def test_91_92_nan_and_infinity_in_both_or_in_one(
    first: tuple[str, str], second: tuple[str, str], code: int, tmp_path: Path, cli: Cli
) -> None:
    """The root of negative numbers and 1/0: the same in both is equal, in one alone or of another sign different."""
    for name, (op, read) in (("a", first), ("b", second)):
        nodes = [
            N("Abs", ["x"], ["a"]), N("Relu", ["x"], ["z"]), N("Neg", ["z"], ["m"]), N(op, [read], ["y"])
        ]  # fmt: skip
        onnx.save(model(nodes, [], (1, 64)), tmp_path / f"{name}.onnx")
    assert cli("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")[0] == code


def test_94_sizes_are_said_and_nothing_is_written_into_the_model(tmp_path: Path, cli: Cli) -> None:
    """Free dimensions without hints: sizes in the report, every byte of both files as before, no file more."""
    original = conv_bn(x=("N", 3, "H", "W"))
    onnx.save(original, tmp_path / "a.onnx")
    onnx.save(bnfold.fold(original, verify=False).model, tmp_path / "b.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, _ = cli("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert code == 0
    assert all(f"{symbol}=" in out for symbol in "NHW")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_96_an_original_that_cannot_load_is_never_equal(tmp_path: Path, cli: Cli) -> None:
    """The original has an operator that nobody knows, the other model runs: exit 3, and it says which operator."""
    custom = model([N("Mystery", ["x"], ["y"], domain="my.domain")], [], (2, 3))
    custom.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(custom, tmp_path / "a.onnx")
    onnx.save(model([N("Relu", ["x"], ["y"])], [], (2, 3)), tmp_path / "b.onnx")
    code, out, _ = cli("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert code == 3
    assert "Mystery" in out


@pytest.mark.parametrize("change", ["order", "count", "name", "dtype", "shape"])
def test_98_outputs_of_equal_values_differ_in_all_else(change: str, tmp_path: Path, cli: Cli) -> None:
    """Two outputs of the same numbers, swapped, doubled, renamed, as float64, or of another shape: exit 1."""
    nodes = [N("Relu", ["x"], ["y"]), N("Relu", ["x"], ["z"])]
    flat = tensor("flat", [-1], np.int64)
    other = {
        "order": model(nodes, [], (1, 4), outputs=("z", "y")),
        "count": model([*nodes, N("Relu", ["x"], ["more"])], [], (1, 4), outputs=("y", "z", "more")),
        "name": model([nodes[0], N("Relu", ["x"], ["w"])], [], (1, 4), outputs=("y", "w")),
        "dtype": model(
            [nodes[0], N("Relu", ["x"], ["r"]), N("Cast", ["r"], ["z"], to=TensorProto.DOUBLE)], [], (1, 4),
            outputs=("y", "z"),
        ),
        "shape": model(
            [nodes[0], N("Relu", ["x"], ["r"]), N("Reshape", ["r", "flat"], ["z"])], [flat], (1, 4),
            outputs=("y", "z"),
        ),
    }[change]  # fmt: skip
    if change == "dtype":
        other.graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model(nodes, [], (1, 4), outputs=("y", "z")), tmp_path / "a.onnx")
    onnx.save(other, tmp_path / "b.onnx")
    code, out, _ = cli("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert code == 1
    assert "different" in out
