"""Verification: what must pass, what must not, and what must be said to be unknown."""

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.document import serialise
from bnfold.errors import UsageError
from bnfold.verification import ProviderRun, VerifyOptions, combine
from bnfold.verification.compare import compare_arrays, compare_outputs
from bnfold.verification.judge import verify_pair
from bnfold.verification.reference import ReferenceRunner
from bnfold.verification.runtime import OrtRunner
from tests.conftest import MODELS, batchnorm_parameters, conv_bn, model, random_feeds, run, tensor

FLOAT32 = np.dtype(np.float32)


def verdict(original: ModelProto, folded: ModelProto, **options):
    """Judge two models in memory."""
    return verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions(**options))


def changed(proto: ModelProto, name: str, change) -> ModelProto:
    """A copy of the model with one initializer changed: change(array) -> array."""
    copy = ModelProto.FromString(proto.SerializeToString())
    held = next(t for t in copy.graph.initializer if t.name == name)
    held.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(held).copy()), name))
    return copy


def bump(index, amount):
    """Add `amount` to element `index` of the flattened array."""

    def change(array):
        array.flat[index] += amount
        return array

    return change


WRONG = {
    "one map's bias off by 1e-3": ("w_bias", bump(2, 1e-3)),
    "epsilon dropped": ("w_folded", lambda w: w * np.float32(1.0001)),
    "gamma by absolute value": ("w_folded", np.abs),
    "two maps exchanged": ("w_folded", lambda w: w[[1, 0, 2, 3]]),
    "one weight NaN": ("w_folded", bump(0, np.nan)),
    "one bias infinite": ("w_bias", bump(1, np.inf)),
    "bias doubled": ("w_bias", lambda b: b * 2),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_folds_are_different(fault):
    """Each of these is wrong in one small way and must be noticed."""
    original = conv_bn()
    folded = changed(bnfold.fold(original, verify=False).model, *WRONG[fault])
    found = verdict(original, folded)
    assert found.verdict == "different"
    assert not found
    assert "'y'" in found.reason


def test_right_folds_are_equal_and_say_how_far():
    """The real fold passes at rounding level, with the numbers to show for it."""
    original = conv_bn()
    found = verdict(original, bnfold.fold(original, verify=False).model)
    assert found.verdict == "equal"
    assert found.runs[0].provider == "CPUExecutionProvider"
    assert found.runs[0].trials == 3
    assert 0 < found.worst.relative < 1e-6
    assert found.worst.ulps == pytest.approx(found.worst.relative * 2**23)


@pytest.mark.parametrize("name", ["digits_resnet", "levit", "mobilenet_opset9", "unet"])
def test_no_false_alarm_on_other_seeds(name):
    """Real folds stay equal whichever inputs are drawn, on noisy networks too."""
    path = MODELS / f"{name}.onnx"
    folded = serialise(bnfold.fold(path, verify=False).model)
    assert [verify_pair(path, folded, VerifyOptions(seed=s)).verdict for s in range(5)] == ["equal"] * 5


def deep_stack(depth: int) -> ModelProto:
    """A stack of Conv-BN-Relu that keeps its activations near 1."""
    rng = np.random.default_rng(0)
    nodes, held, value = [], [], "x"
    for i in range(depth):
        held += [tensor(f"w{i}", rng.normal(size=(8, 8, 3, 3)) / 8), *batchnorm_parameters(8, i, prefix=f"p{i}_")]
        names = [t.name for t in held[-4:]]
        nodes += [
            helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{i}", *names], [f"b{i}"]),
            helper.make_node("Relu", [f"b{i}"], ["y" if i == depth - 1 else f"r{i}"]),
        ]
        value = f"r{i}"
    return model(nodes, held, (1, 8, 8, 8))


def test_a_hundred_layers_are_no_false_alarm():
    """Rounding adds up over depth, and near zero any relative error occurs: still equal (FIELD 69)."""
    original = deep_stack(100)
    result = bnfold.fold(original)
    assert len(result.folded) == 100
    assert result.verification


def cancelling() -> ModelProto:
    """Bias and running mean of 1e5 cancel: float32 loses the result in the original, not in the folded model."""
    original = conv_bn(bias=True)
    original = changed(original, "b", lambda b: np.full_like(b, 1e5))
    original = changed(original, "mean", lambda m: np.full_like(m, 1e5))
    return changed(original, "w", lambda w: w * np.float32(1e-3))


def test_float64_decides_who_is_right():
    """The original is the inaccurate side (FIELD 60): far outside the limit, but equal, and the report says why."""
    original = cancelling()
    result = bnfold.fold(original)
    assert result.verification
    assert result.verification.worst.relative > 1e-3
    assert "float64" in result.verification.reason


def test_float64_does_not_excuse_a_wrong_fold():
    """The same network with a wrong bias is different in float64 too."""
    original = cancelling()
    folded = changed(bnfold.fold(original, verify=False).model, "b_folded", bump(0, 5.0))
    assert verdict(original, folded).verdict == "different"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.output[0].__setattr__("name", "z") or g.node[-1].output.__setitem__(0, "z"), "outputs are"),
        (lambda g: g.output.append(helper.make_tensor_value_info("c", 1, None)), "outputs are"),
        (lambda g: g.input.append(helper.make_tensor_value_info("extra", 1, [1])), "inputs are"),
        (lambda g: g.node[-1].__setattr__("op_type", "NoSuchOp"), "does not load"),
    ],
    ids=["renamed output", "another output", "another input", "unloadable"],
)
def test_interface_changes_are_different(change, words):
    """Names, order and number of inputs and outputs count, and a model that does not load is not equal."""
    original, folded = conv_bn(), conv_bn()
    change(folded.graph)
    found = verdict(original, folded)
    assert found.verdict == "different"
    assert words in found.reason


def test_swapped_outputs_are_different():
    """Order counts even where shapes agree."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    original = model(nodes, [], (1, 2), outputs=("y", "z"))
    folded = model(nodes, [], (1, 2), outputs=("z", "y"))
    assert "outputs are 'z', 'y' instead of 'y', 'z'" in verdict(original, folded).reason


def one_op(op: str, **attributes) -> ModelProto:
    """A model of one node."""
    return model([helper.make_node(op, ["x"], ["y"], **attributes)], [], (1, 4))


def test_unknown_is_not_equal():
    """NaN everywhere and a custom operator cannot be verified, and the reason says so."""
    log = model([helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Log", ["b"], ["y"])], [], (1, 4))
    log.graph.node.insert(0, helper.make_node("Abs", ["x"], ["a"]))
    custom = model([helper.make_node("Foo", ["x"], ["y"], domain="org.custom")], [], (1, 4))
    custom.opset_import.append(helper.make_opsetid("org.custom", 1))
    for proto, words in ((log, "NaN or infinite"), (custom, "cannot load")):
        found = verdict(proto, proto)
        assert found.verdict == "not verified", words
        assert words in found.reason


def test_comparison_by_the_outputs_own_scale():
    """An error of 1e-6 of the largest element is rounding wherever it stands; 1e-4 is not."""
    reference = np.float32([1000, 1e-6, 0])
    assert compare_arrays("y", reference, reference + np.float32([0, 1e-3, 1e-3])).equal
    assert not compare_arrays("y", reference, reference + np.float32([0, 0.1, 0])).equal
    assert not compare_arrays("y", np.zeros(2, np.float32), np.float32([0, 1e-30])).equal


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ([np.nan, 1], [np.nan, 1], True),
        ([np.nan, 1], [1, np.nan], False),
        ([1, 1], [1, np.nan], False),
        ([np.nan, 1], [0, 1], False),
        ([np.inf, 1], [np.inf, 1], True),
        ([np.inf, 1], [-np.inf, 1], False),
        ([1, 1], [1, np.inf], False),
    ],
)
def test_nan_and_infinity_only_equal_themselves(first, second, equal):
    """NaN equals NaN in the same place, an infinity only itself."""
    assert compare_arrays("y", np.float32(first), np.float32(second)).equal is equal


def test_types_shapes_and_whole_numbers_are_compared_exactly():
    """No tolerance for integers, booleans and strings, none for types and shapes."""
    ones = np.ones(3, np.float32)
    assert "type" in compare_arrays("y", ones, ones.astype(np.float64)).problem
    assert "shape" in compare_arrays("y", ones, ones[:2]).problem
    assert "1 of 3" in compare_arrays("y", np.arange(3), np.array([0, 1, 3])).problem
    assert compare_arrays("y", np.array(["a"]), np.array(["a"])).equal
    assert not compare_arrays("y", np.array([True]), np.array([False])).equal


def test_sequences_and_maps_are_compared_element_by_element():
    """Outputs need not be tensors."""
    one, two = np.float32([1]), np.float32([2])
    assert [c.name for c in compare_outputs(["s"], [[one, two]], [[one, two]])] == ["s[0]", "s[1]"]
    assert not compare_outputs(["s"], [[one]], [[one, two]])[0].equal
    assert not compare_outputs(["s"], [[{"a": 1.0}]], [[{"a": 2.0}]])[-1].equal
    assert all(c.equal for c in compare_outputs(["s"], [[{"a": 1.0}]], [[{"a": 1.0}]]))
    assert not compare_outputs(["o"], [None], [one])[0].equal
    assert compare_outputs(["o"], [None], [None])[0].equal


def test_the_limit_follows_the_coarser_of_output_and_weights():
    """A float16 network that ends in a Cast to float32 is judged as float16, a float32 one as float32."""
    reference = np.float32([1])
    found = np.float32([1.001])
    assert not compare_arrays("y", reference, found).equal
    assert compare_arrays("y", reference, found, np.dtype(np.float16)).equal
    assert compare_arrays("y", reference.astype(np.float64), found.astype(np.float64), FLOAT32).limit == 2.0**-17


def test_a_float16_network_with_float32_ends_is_no_false_alarm():
    """Weights in float16 between two Casts: the float32 output cannot be better than they are."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    held = [tensor("w", rng.normal(size=(4, 3, 3, 3)), np.float16), *batchnorm_parameters(4, dtype=np.float16)]
    original = model(nodes, held)
    assert bnfold.fold(original).verification


def test_different_outweighs_not_verified_outweighs_equal():
    """The verdict over several providers is the worst, and a pass is never reported for what did not run."""
    equal, unknown, different = (ProviderRun(v, "", v, v) for v in ("equal", "not verified", "different"))
    assert combine((equal, unknown, different)).verdict == "different"
    assert combine((equal, unknown)).verdict == "not verified"
    assert combine((equal, equal)).verdict == "equal"


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
def test_the_reference_is_the_formula_at_every_opset(opset):
    """The float64 evaluator agrees with onnxruntime on BatchNormalization of every version that both have."""
    proto = conv_bn(opset=opset, ir_version=4 if opset < 9 else 8)
    feeds = random_feeds(proto)
    data = proto.SerializeToString()
    first, second = ReferenceRunner(data).run(feeds)[0], run(proto, feeds)[0]
    assert first.dtype == np.float64
    assert np.abs(first - second).max() < 1e-6 * np.abs(first).max()
    assert OrtRunner(data, "CPUExecutionProvider").inputs == ReferenceRunner(data).inputs


def test_the_reference_stands_in_for_missing_kernels():
    """float64 and bfloat16 Conv have no CPU kernel: the reference evaluator verifies, and the report says so."""
    for dtype, kind in ((np.float64, TensorProto.DOUBLE), (ml_dtypes.bfloat16, TensorProto.BFLOAT16)):
        nodes = conv_bn().graph.node
        held = [tensor("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)), dtype),
                *batchnorm_parameters(4, dtype=dtype)]  # fmt: skip
        original = model(nodes, held, opset=22, ir_version=10, elem_type=kind)
        result = bnfold.fold(original)
        assert result.verification
        assert result.verification.runs[0].provider == "reference"
        assert "stood in" in result.verification.reason
        wrong = changed(result.model, "w_bias", lambda b: (b.astype(np.float64) + 0.5).astype(b.dtype))
        assert verdict(original, wrong).verdict == "different"


def test_cuda_without_a_gpu_is_not_a_silent_pass_on_the_cpu():
    """Asking for CUDA where it is absent is `not verified`, never an answer from another provider."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU here; the cuda tests cover it")
    found = verdict(one_op("Relu"), one_op("Relu"), providers=("cpu", "cuda"))
    assert found.verdict == "not verified"
    assert [r.verdict for r in found.runs] == ["equal", "not verified"]
    assert "bnfold[cuda]" in found.reason


@pytest.mark.cuda
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_models_verify_on_cuda(path):
    """Every model in models/ folds to equal outputs on the CUDA provider itself."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an NVIDIA GPU and onnxruntime-gpu")
    result = bnfold.fold(path, providers=("cuda",))
    assert result.verification
    assert result.verification.runs[0].provider == "CUDAExecutionProvider"


def test_the_reference_widens_every_float_it_meets():
    """Constants, Casts, typed attributes, branches and functions: all computed in float64."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["h", "third"], ["t"])],
        "branch",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT16, None)],
        [tensor("third", [1 / 3], np.float16)],
    )
    function = helper.make_function(
        "local", "scale", ["a"], ["b"],
        [helper.make_node("Constant", [], ["k"], value_floats=[0.1]), helper.make_node("Mul", ["a", "k"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["cond"], value=tensor("", True, np.bool_)),  # noqa: FBT003
        helper.make_node("Constant", [], ["tenth"], value_float=0.1),
        helper.make_node("Mul", ["x", "tenth"], ["m"]),
        helper.make_node("Cast", ["m"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("If", ["cond"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("scale", ["f"], ["y"], domain="local"),
    ]
    proto = model(nodes, [], (1, 2))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    x = np.float32([[1, 3]])
    found = ReferenceRunner(proto.SerializeToString()).run({"x": x})[0]
    tenth, third = float(np.float32(0.1)), float(np.float16(1 / 3))
    np.testing.assert_allclose(found, (x.astype(np.float64) * tenth + third) * tenth, rtol=1e-15)


def test_float64_cannot_arbitrate_what_it_cannot_run():
    """No values in common, and an operator that the reference evaluator lacks: a difference stays a difference."""
    original = cancelling()
    original.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    original.graph.output[0].name = "z"
    original.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    folded = bnfold.fold(original, verify=False).model
    assert verdict(original, folded).verdict == "equal"
    for node in folded.graph.node:
        node.input[:] = ["other" if name == "y" else name for name in node.input]
        node.output[:] = ["other" if name == "y" else name for name in node.output]
    assert verdict(original, folded).verdict == "different"


def test_a_folded_model_that_fails_at_run_time_is_different():
    """It loads, the original runs, and it does not: that is no `not verified`."""
    original = conv_bn(x=("N", 3, 9, 9))
    original.graph.node.append(helper.make_node("Reshape", ["y", "shape"], ["z"]))
    original.graph.output[0].name = "z"
    original.graph.initializer.append(tensor("shape", [-1], np.int64))
    found = verdict(original, changed(original, "shape", lambda _: np.array([3, -1])))
    assert found.verdict == "different"
    broken = verdict(original, changed(original, "shape", lambda _: np.array([11, -1])))
    assert broken.verdict == "different"
    assert "does not run" in broken.reason


def test_options_that_compare_nothing_are_refused():
    """No provider, no trial, no elements, or more than any machine holds: usage errors, before any work."""
    for options in (
        {"providers": ()}, {"providers": ("tpu",)}, {"trials": 0}, {"dims": {"N": 0}}, {"shapes": {"x": (1, 2**40)}},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            VerifyOptions(**options)


def test_float64_does_not_excuse_a_worse_run():
    """Adding and taking away 1e7 is nothing in float64 and ruins float32: different, whatever float64 says."""
    original = conv_bn()
    folded = bnfold.fold(original, verify=False).model
    folded.graph.node[0].output[0] = "n"
    folded.graph.initializer.append(tensor("big", 1e7))
    folded.graph.node.append(helper.make_node("Add", ["n", "big"], ["p"]))
    folded.graph.node.append(helper.make_node("Sub", ["p", "big"], ["y"]))
    assert verdict(original, folded).verdict == "different"


@pytest.mark.parametrize(
    ("dtype", "shape", "tail"),
    [
        (np.float16, (2, 16, 64, 64), [helper.make_node("ArgMax", ["n"], ["y"], axis=1)]),
        (np.float32, (2, 16, 128, 128), [helper.make_node("Greater", ["n", "edge"], ["y"])]),
        (np.float32, (2, 16, 128, 128), [helper.make_node("QuantizeLinear", ["n", "step"], ["y"])]),
    ],
    ids=["ArgMax", "Greater", "QuantizeLinear"],
)
def test_decisions_next_to_a_boundary_are_no_false_alarm(dtype, shape, tail):
    """A few labels, truth values or steps of many may turn by rounding; more than that is different."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        *tail,
    ]
    held = [tensor("w", rng.normal(size=(16, 16, 3, 3)) / 12, dtype), *batchnorm_parameters(16, dtype=dtype)]
    held += [tensor("edge", 0.1, dtype), tensor("step", 0.01, dtype)]
    original = model(nodes, held, shape, elem_type=kind)
    out = {"ArgMax": TensorProto.INT64, "Greater": TensorProto.BOOL, "QuantizeLinear": TensorProto.UINT8}
    original.graph.output[0].type.tensor_type.elem_type = out[tail[0].op_type]
    folded = bnfold.fold(original).model
    assert verdict(original, changed(folded, "w_bias", lambda b: b * 2)).verdict == "different"


def test_decisions_are_compared_by_their_share():
    """One of a million may turn in float32, one of a hundred may not; text never."""
    many = np.zeros(1_000_000, np.int64)
    other = many.copy()
    other[7] = 1
    assert compare_arrays("y", many, other).equal
    assert not compare_arrays("y", many[:100], other[:100]).equal
    assert not compare_arrays("y", many.astype(str), other.astype(str)).equal


def test_the_reference_does_not_guess_legacy_broadcasting():
    """Opset 6 aligns shapes by attributes that the evaluator ignores: not verified rather than verified wrongly."""
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"], broadcast=1, axis=1)]
    proto = model(nodes, [tensor("s", [1, 2, 3])], (1, 3, 3, 3), opset=6, ir_version=3)
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]))
    found = verdict(proto, proto, providers=("reference",))
    assert found.verdict == "not verified"
    assert "broadcast" in found.reason
