"""Made-up inputs: their kinds, sizes and types, each on real models in onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import UsageError
from bnfold.verification import VerifyOptions
from bnfold.verification.feeds import (
    KINDS,
    InputSpec,
    Sizes,
    choose_shapes,
    input_spec,
    make_feeds,
    nudge,
    parse_dim,
    parse_shape,
)
from bnfold.verification.feeds.statistics import follow_statistics
from bnfold.verification.judge import verify_pair
from tests.conftest import MODELS, batchnorm_parameters, conv_bn, model, run, tensor

FLOAT32 = np.dtype(np.float32)
CPU = "CPUExecutionProvider"


def verdict(original: ModelProto, folded: ModelProto, **options):
    """Judge two models in memory."""
    return verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions(**options))


def fed(proto: ModelProto, **options):
    """What is fed to a model, trial by trial, and that it ran."""
    found = verdict(proto, proto, **options)
    assert found.verdict == "equal", found.reason
    return found.runs[0].inputs


def test_free_dimensions_get_two_sizes_and_the_report_says_which():
    """Symbols and unnamed dimensions are given sizes, two each over the trials; hints are obeyed (FIELD 94)."""
    original = conv_bn(x=("N", 3, "H", None))
    before = original.SerializeToString()
    found = verdict(original, original)
    assert original.SerializeToString() == before
    assert dict(found.runs[0].sizes) == {"N": 2, "H": 64, "x[3]": 64}
    inputs = found.runs[0].inputs
    assert [trial.name for trial in inputs] == list(KINDS)
    assert [dict(trial.sizes) for trial in inputs] == [
        {"N": 2, "H": 64, "x[3]": 64}, {"N": 1, "H": 96, "x[3]": 96}, {"N": 2, "H": 64, "x[3]": 64},
    ]  # fmt: skip
    assert inputs[1].shapes["x"] == (1, 3, 96, 96)
    found = verdict(original, original, dims={"N": 5, "H": 7}, seed=3)
    assert [trial.shapes["x"] for trial in found.runs[0].inputs] == [(5, 3, 7, 64), (5, 3, 7, 96), (5, 3, 7, 64)]
    found = verdict(original, original, shapes={"x": (1, 3, 4, 5)})
    assert {trial.shapes["x"] for trial in found.runs[0].inputs} == {(1, 3, 4, 5)}
    assert not found.runs[0].sizes


def test_a_size_that_the_model_cannot_take_stays_as_it_was():
    """A Reshape to a fixed number of locations behind free inputs: only the batch varies."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Reshape", ["n", "shape"], ["y"]),
    ]
    held = [tensor("w", np.ones((4, 3, 3, 3))), tensor("shape", [-1, 4, 224 * 224], np.int64)]
    original = model(nodes, held + batchnorm_parameters(4), ("N", 3, "H", "H"))
    result = bnfold.fold(original)
    assert result.verification
    inputs = result.verification.runs[0].inputs
    assert [trial.shapes["x"] for trial in inputs[:2]] == [(2, 3, 224, 224), (1, 3, 224, 224)]


def test_two_inputs_with_one_symbol_have_one_size():
    """`N` is the same in both, in every trial; what is unnamed is free in each."""
    proto = model([helper.make_node("Add", ["x", "z"], ["y"])], [], ("N", "C"))
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 1]))
    shapes = [trial.shapes for trial in fed(proto)]
    assert [shape["x"] for shape in shapes[:2]] == [(2, 16), (1, 24)]
    assert [shape["z"] for shape in shapes[:2]] == [(2, 1), (1, 1)]


def test_wrong_hints_are_usage_errors():
    """A shape or symbol that the model does not have, or that does not fit, is refused with the names it has."""
    original = conv_bn(x=("N", 3, 9, 9))
    with pytest.raises(UsageError, match="no such input; the model has x"):
        verdict(original, original, shapes={"image": (1,)})
    with pytest.raises(UsageError, match="no such dimension; the model has N"):
        verdict(original, original, dims={"M": 1})
    with pytest.raises(UsageError, match="does not fit"):
        verdict(original, original, shapes={"x": (1, 4, 9, 9)})


def test_made_up_inputs_fit_into_memory():
    """Asking for more than a machine holds is a usage error, in one input or in all together (FIELD 97)."""
    original = conv_bn(x=("N", 3, 9, 9))
    with pytest.raises(UsageError, match="too large to make up"):
        verdict(original, original, dims={"N": 2**30})
    specs = [InputSpec(name, FLOAT32, ("N",)) for name in "ab"]
    with pytest.raises(UsageError, match="too large to make up"):
        choose_shapes(specs, Sizes(1, 1, 1), {}, {"N": 2**28})


def test_hints_parse_in_the_forms_people_know():
    """name:1,3,224,224 and name:[1,3,224,224]; names may hold colons; anything else is refused."""
    assert parse_shape("x:1,3,224,224") == ("x", (1, 3, 224, 224))
    assert parse_shape("a:0:[1, 3]") == ("a:0", (1, 3))
    assert parse_shape("scalar:") == ("scalar", ())
    assert parse_dim("N=2") == ("N", 2)
    for text in ("x", "x:a,b", "x:1,,2"):
        with pytest.raises(UsageError, match="--shape"):
            parse_shape(text)
    for text in ("N", "N=", "N=0", "=3", "N=-1"):
        with pytest.raises(UsageError, match="--dim"):
            parse_dim(text)


def test_feeds_are_seeded_and_of_both_signs():
    """The same seed gives the same inputs, another one others; floats have both signs; integers are valid indices."""
    specs = [InputSpec("f", FLOAT32, (50,)), InputSpec("i", np.dtype(np.int64), (50,)),
             InputSpec("b", np.dtype(bool), (50,)), InputSpec("u", np.dtype(np.uint8), (50,)),
             InputSpec("s", np.dtype(object), (2,))]  # fmt: skip
    shapes = choose_shapes(specs, Sizes(1, 1, 1), {}, {}).shapes
    for trial in (0, 1, 2):
        first, again, other = (make_feeds(specs, shapes, seed, trial) for seed in (1, 1, 2))
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not np.array_equal(first["f"], other["f"])
        assert first["f"].dtype == np.float32
        assert first["f"].min() < -0.5
        assert (np.abs(first["f"]).max() < 1) == (trial == 1)
        assert set(first["i"]) == {0, 1}
        assert first["b"].dtype == bool
        assert first["u"].max() > 100
        assert first["s"].tolist() == ["bnfold", "bnfold"]


def test_nudged_inputs_are_neighbours():
    """Every float moves by one unit in the last place, either way; integers stay, sequences too are moved."""
    feeds = {"x": np.linspace(-1, 1, 99, dtype=np.float32), "i": np.arange(3), "s": [np.ones(2)], "o": None}
    moved = nudge(feeds, 0)
    steps = np.abs(moved["x"].view(np.int32).astype(np.int64) - feeds["x"].view(np.int32))
    assert set(steps[feeds["x"] != 0]) == {1}
    assert (moved["x"] > feeds["x"]).any()
    assert (moved["x"] < feeds["x"]).any()
    assert moved["i"] is feeds["i"]
    assert (moved["s"][0] != 1).all()
    assert moved["o"] is None


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [None])


def of_type(kind, node, elem_type):
    """A model with one input of a type."""
    node.input[:], node.output[:] = ["x"], ["y"]
    proto = model([node], [], (1,), elem_type=elem_type)
    proto.graph.input[0].type.CopyFrom(kind)
    return proto


@pytest.mark.parametrize(
    ("kind", "op", "elem_type"),
    [
        (helper.make_sequence_type_proto(FLOATS), "SequenceLength", TensorProto.INT64),
        (helper.make_sequence_type_proto(FLOATS), "ConcatFromSequence", TensorProto.FLOAT),
        (helper.make_optional_type_proto(FLOATS), "OptionalHasElement", TensorProto.BOOL),
        (helper.make_optional_type_proto(FLOATS), "OptionalGetElement", TensorProto.FLOAT),
        (helper.make_tensor_type_proto(TensorProto.STRING, [2]), "StringNormalizer", TensorProto.STRING),
        (helper.make_tensor_type_proto(TensorProto.STRING, [2]), "Cast", TensorProto.INT64),
        (helper.make_tensor_type_proto(TensorProto.BOOL, ["N"]), "Not", TensorProto.BOOL),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, []), "Neg", TensorProto.FLOAT),
        (helper.make_tensor_type_proto(TensorProto.DOUBLE, []), "Neg", TensorProto.DOUBLE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_of_every_type_are_made_up(kind, op, elem_type):
    """Sequences, optionals, text, truth values and scalars are fed to a model that runs on them (FIELD 89)."""
    attributes = {"Cast": {"to": elem_type}, "ConcatFromSequence": {"axis": 0}}.get(op, {})
    assert len(fed(of_type(kind, helper.make_node(op, [], [], **attributes), elem_type))) == 3


def test_an_optional_is_there_and_absent():
    """A model that says whether its optional is there says both, and is fed both."""
    spec = input_spec(helper.make_value_info("x", helper.make_optional_type_proto(FLOATS)))
    assert str(spec) == "'x' optional of float32 (?)"
    node = helper.make_node("OptionalHasElement", [], [])
    inputs = fed(of_type(helper.make_optional_type_proto(FLOATS), node, TensorProto.BOOL))
    assert [trial.name for trial in inputs] == [*list(KINDS[:2]), "normal"]
    only = of_type(helper.make_optional_type_proto(FLOATS), node, TensorProto.BOOL)
    other = of_type(helper.make_optional_type_proto(FLOATS), node, TensorProto.BOOL)
    other.graph.node.insert(0, helper.make_node("OptionalHasElement", ["x"], ["h"]))
    other.graph.node[1].op_type = "Or"
    other.graph.node[1].input[:] = ["h", "true"]
    other.graph.initializer.append(tensor("true", np.True_, np.bool_))
    assert verdict(only, other).verdict == "different"


def test_text_that_the_model_knows_is_used():
    """A LabelEncoder is asked for its own keys, so that it does not answer with its default alone."""
    node = helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["cat", "dog"], values_int64s=[3, 5]
    )
    proto = model([node], [], (64,), elem_type=TensorProto.STRING)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    other = ModelProto.FromString(proto.SerializeToString())
    other.graph.node[0].attribute[1].ints[1] = 4
    assert fed(proto)
    assert verdict(proto, other).verdict == "different"


def test_inputs_that_cannot_be_made_up_are_named():
    """A map is not verified, and the reason names it."""
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [], (1, 4))
    kind = helper.make_map_type_proto(TensorProto.INT64, FLOATS)
    proto.graph.input.append(helper.make_value_info("many", kind))
    found = verdict(proto, proto)
    assert found.verdict == "not verified"
    assert "'many'" in found.reason


def test_what_runs_on_nothing_says_how_to_help():
    """A model that no made-up input suits is not verified, and the reason names the options that help."""
    proto = model([helper.make_node("Reshape", ["x", "shape"], ["y"])], [tensor("shape", [7, 11], np.int64)], ("N",))
    found = verdict(proto, proto)
    assert found.verdict == "not verified"
    assert "--input-data" in found.reason


def pixels(mean: float, std: float, *, preprocessed: bool = False, layout: str = "NCHW") -> ModelProto:
    """Conv and BatchNormalization whose statistics are those of pixels of that mean and deviation."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 3, 3, 3)).astype(np.float32) + np.float32(0.2)
    data = rng.normal(mean, std, (8, 3, 20, 20)).astype(np.float32)
    before = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    value = "t" if before else "x"
    if preprocessed:
        before += [helper.make_node("Sub", [value, "half"], ["s"]), helper.make_node("Div", ["s", "half"], ["p"])]
        value = "p"
    nodes = [*before, helper.make_node("Conv", [value, "w"], ["c"])]
    held = [tensor("w", weight), tensor("half", 127.5)]
    shape = (2, 20, 20, 3) if layout == "NHWC" else (2, 3, 20, 20)
    start = model(nodes, held, shape, outputs=("c",))
    maps = np.concatenate([run(start, {"x": part.reshape(shape)})[0] for part in np.split(data, 4)])
    names = [tensor("gamma", np.ones(16)), tensor("beta", np.zeros(16)), tensor("mean", maps.mean(axis=(0, 2, 3))),
             tensor("var", maps.var(axis=(0, 2, 3)))]  # fmt: skip
    nodes.append(helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]))
    return model(nodes, held + names, shape)


@pytest.mark.parametrize("arguments", [{}, {"preprocessed": True}, {"layout": "NHWC"}], ids=str)
def test_inputs_follow_the_running_statistics(arguments):
    """Statistics of pixels (mean 120, deviation 60) are found again, through preprocessing and layouts."""
    proto = pixels(120, 60, **arguments)
    spec = input_spec(proto.graph.input[0])
    shape = tuple(spec.shape)
    standard = make_feeds([spec], {"x": shape}, 0, 2)
    mean, scale = follow_statistics(proto.SerializeToString(), standard, CPU)["x"]
    assert mean == pytest.approx(120, rel=0.05)
    assert scale == pytest.approx(60, rel=0.1)
    normalised = run(proto, {"x": (mean + scale * standard["x"]).astype(np.float32)})[0]
    assert abs(normalised.mean()) < 0.2
    assert normalised.std() == pytest.approx(1, abs=0.2)
    assert [trial.name for trial in fed(proto)] == list(KINDS)


def test_a_fold_that_is_wrong_only_on_pixels_is_found():
    """Clipping at 100 does nothing to standard normal numbers, and much to what the network was trained on."""
    original = pixels(120, 60)
    original.graph.node.insert(0, helper.make_node("Identity", ["x"], ["i"]))
    original.graph.node[1].input[0] = "i"
    wrong = ModelProto.FromString(original.SerializeToString())
    wrong.graph.node[0].op_type = "Clip"
    wrong.graph.node[0].input[:] = ["x", "low", "high"]
    wrong.graph.initializer.extend([tensor("low", -100), tensor("high", 100)])
    assert verdict(original, wrong, trials=3).verdict == "different"


def test_where_no_statistics_are_known_the_inputs_are_normal():
    """No BatchNormalization, computed statistics, or a mean of 1e7: the trial says that it is normal."""
    relu = model([helper.make_node("Relu", ["x"], ["y"])], [], (1, 4))
    assert fed(relu)[2].name == "normal"
    training = conv_bn()
    training.graph.node.insert(0, helper.make_node("Abs", ["var_"], ["var"]))
    next(t for t in training.graph.initializer if t.name == "var").name = "var_"
    assert fed(training)[2].name == "normal"
    assert follow_statistics(b"", {}, CPU) == {}
    large = pixels(1e7, 1)
    assert fed(large)[2].name == "normal"


def test_external_data_before_the_first_batchnorm_is_read(tmp_path):
    """The start of a model is run alone with its weights where they are; the files stay as they were."""
    proto = pixels(120, 60)
    data, path = proto.SerializeToString(), tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    standard = make_feeds([input_spec(proto.graph.input[0])], {"x": (2, 3, 20, 20)}, 0, 2)
    assert follow_statistics(path, standard, CPU) == follow_statistics(data, standard, CPU) != {}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["digits_resnet", "bert", "keras_mobilenet_v2"])
def test_real_models_are_fed_in_three_kinds(name):
    """Images, tokens, and a layout that is transposed first: each runs on two sizes and stays equal to itself."""
    found = verify_pair(MODELS / f"{name}.onnx", MODELS / f"{name}.onnx", VerifyOptions())
    assert found
    sizes = [trial.shapes for trial in found.runs[0].inputs]
    assert len(sizes) == 3
    assert sizes[0] != sizes[1] == sizes[2]
