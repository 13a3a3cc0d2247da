"""The Python API: results, errors, and that nothing is printed, mutated or written unasked."""

import dataclasses
import importlib.util
import inspect as introspection
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import OutputError, UsageError
from tests.conftest import (
    MODELS,
    assert_same_outputs,
    batchnorm_parameters,
    conv_bn,
    initializer,
    model,
    ops,
    tensor,
)


def behind(*nodes: Any, x: Any = None, **constants: Any) -> ModelProto:
    """x -> Conv -> BatchNormalization -> z -> `nodes` -> y, with further initializers."""
    proto = conv_bn(x=x)
    proto.graph.node[1].output[0] = "z"
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(tensor(name, values) for name, values in constants.items())
    return proto


def mixed() -> ModelProto:
    """x -> Conv -> BatchNormalization 'bn' -> Relu -> BatchNormalization 'late' -> y: one folds, one is left."""
    names = [f"late_{name}" for name in ("gamma", "beta", "mean", "var")]
    proto = behind(
        helper.make_node("Relu", ["z"], ["r"], name="relu"),
        helper.make_node("BatchNormalization", ["r", *names], ["y"], name="late"),
    )
    proto.graph.initializer.extend(batchnorm_parameters(4, 1, prefix="late_"))
    return proto


# Public names


def test_the_public_names_are_pinned() -> None:
    """Adding or removing one is a decision: these, and each is there."""
    assert bnfold.__all__ == [
        "BnfoldError",
        "CheckResult",
        "FoldResult",
        "Inspection",
        "InvalidModelError",
        "NotVerified",
        "OutputError",
        "Restored",
        "UndoError",
        "UsageError",
        "Verification",
        "VerificationFailed",
        "__version__",
        "check",
        "fold",
        "inspect",
        "unfold",
        "verify",
    ]
    assert all(getattr(bnfold, name) for name in bnfold.__all__)
    assert dir(bnfold) == sorted(bnfold.__all__)
    assert not hasattr(bnfold, "folded")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bnfold.nonsense  # noqa: B018 - the access is the test


def test_the_package_is_typed() -> None:
    """Type checkers find the annotations (PEP 561)."""
    spec = importlib.util.find_spec("bnfold")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").is_file()


def test_options_are_keywords_and_documented() -> None:
    """Everything behind the model and the output is given by name, and the docstring explains each argument."""
    parameters = introspection.signature(bnfold.fold).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    positional = [name for name, kind in kinds.items() if kind is not introspection.Parameter.KEYWORD_ONLY]
    assert positional == ["model", "output"]
    assert bnfold.fold.__doc__
    assert all(f"        {name}: " in introspection.cleandoc(bnfold.fold.__doc__).replace("    ", "        ")
               for name in parameters)  # fmt: skip


def test_every_error_has_its_exit_code() -> None:
    """One root; 1 for a difference, 3 for what could not be verified, 2 for all others."""
    errors = {bnfold.InvalidModelError: 2, OutputError: 2, UsageError: 2}
    errors |= {bnfold.VerificationFailed: 1, bnfold.NotVerified: 3}
    assert {error: error.exit_code for error in errors} == errors
    assert all(issubclass(error, bnfold.BnfoldError) for error in errors)


# fold


@pytest.mark.parametrize("kind", [str, Path, onnx.load, os.fspath])
def test_fold_takes_a_path_or_a_proto(kind: Callable[[Any], Any]) -> None:
    """A string, a Path, or a ModelProto: the same report, the same model, and no file written."""
    path = MODELS / "digits_resnet.onnx"
    before = sorted(MODELS.iterdir())
    result = bnfold.fold(kind(path), trials=1)
    assert len(result.folded) == 10
    assert result.refused == ()
    assert result.verification
    assert "BatchNormalization" not in ops(result.model)
    assert result.model.SerializeToString(deterministic=True) == bnfold.fold(
        path, verify=False
    ).model.SerializeToString(deterministic=True)
    assert sorted(MODELS.iterdir()) == before


@pytest.mark.parametrize("proto", [pytest.param(mixed(), id="mixed"), pytest.param(conv_bn(), id="folds")])
def test_a_proto_passed_in_is_not_changed(proto: ModelProto, tmp_path: Path) -> None:
    """Its bytes are the same after fold, inspect, save, and after somebody edits the result."""
    before = proto.SerializeToString(deterministic=True)
    result = bnfold.fold(proto, tmp_path / "out.onnx")
    bnfold.inspect(proto, freeze_inputs=True)
    result.save(tmp_path / "again.onnx")
    held = result.model
    held.graph.ClearField("node")
    held.graph.initializer[0].raw_data = b""
    assert proto.SerializeToString(deterministic=True) == before
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_a_result_does_not_follow_its_model_or_its_input(tmp_path: Path) -> None:
    """`.model` is a copy each time, and changing the input afterwards changes no result."""
    proto = conv_bn()
    result = bnfold.fold(proto)
    first = result.model
    first.graph.ClearField("initializer")
    proto.graph.ClearField("node")
    assert ops(result.model) == ["Conv"]
    assert len(result.model.graph.initializer) == 2
    result.save(tmp_path / "out.onnx")
    assert_same_outputs(conv_bn(), onnx.load(tmp_path / "out.onnx"))


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_is_printed(verify: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001
    """Neither stdout nor stderr, by Python or below it: folded, left, unchanged, failed."""
    bnfold.fold(mixed(), tmp_path / "out.onnx", verify=verify)
    bnfold.fold(tmp_path / "out.onnx", verify=verify).save(tmp_path / "again.onnx")
    bnfold.inspect(tmp_path / "out.onnx")
    if verify:
        unknown = behind(helper.make_node("Nonsense", ["z"], ["y"]))
        with pytest.raises(bnfold.NotVerified):
            bnfold.fold(unknown)
        float64 = behind(helper.make_node("Relu", ["z"], ["y"]))
        bnfold.fold(float64, providers=["reference"])
    with pytest.raises(bnfold.InvalidModelError):
        bnfold.fold(tmp_path / "absent.onnx")
    assert capfd.readouterr() == ("", "")


def test_what_a_result_tells() -> None:
    """.folded and .refused split the sites; .report holds them in the order of the file, with labels and codes."""
    result = bnfold.fold(mixed())
    assert [site.site for site in result.report.sites] == ["BatchNormalization 'bn'", "BatchNormalization 'late'"]
    assert result.folded + result.refused == result.report.sites
    assert [(site.into, site.producer, site.output) for site in result.folded] == [
        ("Conv 'conv'", "Conv 'conv'", "z"),
    ]
    assert [(site.code, site.producer) for site in result.refused] == [("activation-between", "Relu 'relu'")]
    assert result.refused[0].message
    assert result.renamed == ()
    assert result.frozen == ()
    assert result.verification is result.report.verification
    assert result.verification is not None
    assert result.verification.verdict == "equal"
    assert result.verification.worst is not None
    assert result.verification.worst.name == "y"
    assert result.verification.worst.relative <= result.verification.worst.limit
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.report.status = "mine"  # type: ignore[misc]  # that it is refused is the test


def test_renamed_values_are_listed() -> None:
    """BatchNormalization behind an Identity: what the Conv puts out changed, so it has a new name, listed."""
    proto = conv_bn()
    proto.graph.node[1].input[0] = "i"
    proto.graph.node.insert(1, helper.make_node("Identity", ["c"], ["i"], name="identity"))
    result = bnfold.fold(proto)
    assert len(result.renamed) == 1
    (old, new) = result.renamed[0]
    assert old == "c"
    assert [node.output[0] for node in result.model.graph.node][0] == new  # noqa: RUF015 - order matters
    assert old not in {name for node in result.model.graph.node for name in (*node.input, *node.output)}
    assert_same_outputs(proto, result.model)


def test_frozen_inputs_are_listed() -> None:
    """freeze_inputs: the initializers that a fold took for constants, and only those, leave the inputs."""
    proto = conv_bn(bias=True)
    proto.graph.initializer.append(tensor("other", [1.0]))
    for name, shape in (("w", [4, 3, 3, 3]), ("var", [4]), ("other", [1])):
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    left = bnfold.fold(proto)
    assert [site.code for site in left.refused] == ["overridable-initializer"]
    assert left.frozen == ()
    result = bnfold.fold(proto, freeze_inputs=True)
    assert sorted(result.frozen) == ["var", "w"]
    assert [value.name for value in result.model.graph.input] == ["x", "other"]
    assert [site.outcome for site in bnfold.inspect(proto, freeze_inputs=True).sites] == ["folded"]


def test_save(tmp_path: Path) -> None:
    """`save` takes a string or a Path, replaces nothing without force, and writes what `.model` is."""
    result = bnfold.fold(mixed())
    result.save(str(tmp_path / "out.onnx"))
    with pytest.raises(OutputError, match="exists"):
        result.save(tmp_path / "out.onnx")
    result.save(tmp_path / "out.onnx", force=True)
    assert onnx.load(tmp_path / "out.onnx") == result.model
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_fold_writes_only_where_it_is_told(tmp_path: Path) -> None:
    """With an output: the report names it. The sizes before and after are those of the files."""
    onnx.save(mixed(), tmp_path / "net.onnx")
    result = bnfold.fold(tmp_path / "net.onnx", tmp_path / "out.onnx")
    assert result.report.output == str(tmp_path / "out.onnx")
    assert result.report.model == str(tmp_path / "net.onnx")
    assert result.report.before.bytes == (tmp_path / "net.onnx").stat().st_size
    assert result.report.after is not None
    assert result.report.after.bytes == (tmp_path / "out.onnx").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]
    assert bnfold.fold(tmp_path / "net.onnx").report.output is None


def test_progress_is_called() -> None:
    """A callback hears of each stage, never further than its end."""
    calls: list[tuple[str, int, int]] = []
    bnfold.fold(conv_bn(), progress=lambda *call: calls.append(call), trials=3)
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["fold", "verify"]
    for stage, total in (("fold", 1), ("verify", 3)):
        steps = [call for call in calls if call[0] == stage]
        assert steps == sorted(steps)
        assert all(0 <= done <= end == total for _, done, end in steps)
    assert {done for stage, done, _ in calls if stage == "verify"} >= {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"providers": ["abacus"]}, "abacus"),
        ({"providers": []}, "provider"),
        ({"trials": 0}, "trials"),
        ({"shapes": {"q": (1,)}}, "no such input"),
        ({"dims": {"Q": 1}}, "no such dimension"),
        ({"dims": {"N": 0}}, "N"),
        ({"shapes": {"x": (1, 3, -8, 8)}}, "x"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any], word: str) -> None:
    """The API has no parser in front of it, so it says itself what it cannot take."""
    with pytest.raises(UsageError, match=word):
        bnfold.fold(conv_bn(x=("N", 3, 8, None)), **options)


# inspect


@pytest.mark.parametrize("name", ["digits_resnet.onnx", "densenet.onnx", "repvgg.onnx", "levit.onnx"])
def test_inspect_is_what_fold_does(name: str) -> None:
    """The same sites with the same outcomes, codes and sentences; nothing verified and nothing written."""
    before = {path: path.stat().st_mtime_ns for path in MODELS.iterdir()}
    inspection = bnfold.inspect(MODELS / name)
    assert inspection.sites == bnfold.fold(MODELS / name, verify=False).report.sites
    assert inspection.sites == inspection.report.sites
    assert (inspection.report.after, inspection.report.verification, inspection.report.output) == (None, None, None)
    assert {path: path.stat().st_mtime_ns for path in MODELS.iterdir()} == before


def test_inspect_names_what_helps() -> None:
    """A BatchNormalization that stays has a code, a sentence with names in it, and help where there is some."""
    proto = conv_bn(bn={"training_mode": 1})
    proto.graph.node[1].output.extend(["m", "v"])
    (site,) = bnfold.inspect(proto).sites
    assert (site.outcome, site.code) == ("left", "training-mode")
    assert "'bn'" in site.message
    assert "model.eval()" in site.help
    assert bnfold.inspect(conv_bn()).sites[0].code is None


# Verification


def test_a_difference_raises_with_the_result(wrong_fold: None, tmp_path: Path) -> None:
    """VerificationFailed: nothing written; `.result` holds the report, the verification, the model."""
    with pytest.raises(bnfold.VerificationFailed, match="'y', made by Conv 'conv': the bias of map 3") as caught:
        bnfold.fold(conv_bn(), tmp_path / "out.onnx")
    result = caught.value.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.verdict == "different"
    assert not result.verification
    assert result.verification.worst is not None
    assert result.verification.worst.max_abs == pytest.approx(1, rel=1e-5)
    assert result.report.output is None
    assert ops(result.model) == ["Conv"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(bnfold.VerificationFailed):
        bnfold.fold(conv_bn(), allow_unverified=True)


def _map_input() -> ModelProto:
    """A second input is a map, which nothing makes up."""
    proto = conv_bn()
    values = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    kind = helper.make_map_type_proto(TensorProto.INT64, values)
    proto.graph.input.append(helper.make_value_info("scores", kind))
    return proto


def _no_outputs() -> ModelProto:
    proto = conv_bn()
    proto.graph.ClearField("output")
    return proto


UNVERIFIABLE = {
    "custom-domain": (
        behind(helper.make_node("Mystery", ["z"], ["y"], domain="my.domain")),
        "Mystery",
    ),
    "all-nan": (
        behind(helper.make_node("Mul", ["z", "nan"], ["y"]), nan=[np.nan]),
        "NaN or infinite",
    ),
    "all-infinite": (
        behind(
            helper.make_node("Abs", ["z"], ["a"]),
            helper.make_node("Add", ["a", "inf"], ["y"]),
            inf=[np.inf],
        ),
        "NaN or infinite",
    ),
    "map": (_map_input(), "no tensor, sequence or optional"),
    "no-outputs": (_no_outputs(), "no outputs"),
    "no-size-fits": (
        behind(helper.make_node("Reshape", ["z", "shape"], ["y"]), x=("N", 3, "H", "W")),
        "--shape, --dim, --input-data",
    ),
}
UNVERIFIABLE["custom-domain"][0].opset_import.append(helper.make_opsetid("my.domain", 1))
UNVERIFIABLE["no-size-fits"][0].graph.initializer.append(tensor("shape", [7, 11, 13], np.int64))


@pytest.mark.parametrize("case", UNVERIFIABLE)
def test_what_cannot_be_compared_is_not_verified(case: str, tmp_path: Path) -> None:
    """Never a pass for what could not be judged: NotVerified with the result; or, if allowed, said so."""
    proto, word = UNVERIFIABLE[case]
    with pytest.raises(bnfold.NotVerified, match=word) as caught:
        bnfold.fold(proto, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []
    result = caught.value.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.verdict == "not verified"
    assert not result.verification
    allowed = bnfold.fold(proto, tmp_path / "out.onnx", allow_unverified=True)
    assert allowed.verification is not None
    assert allowed.verification.verdict == "not verified"
    assert (tmp_path / "out.onnx").exists()
    assert "BatchNormalization" not in ops(allowed.model)


def test_some_finite_outputs_are_compared() -> None:
    """NaN in the same places on both sides is equal, as long as there is something finite to compare."""
    proto = behind(helper.make_node("Log", ["z"], ["y"]))
    result = bnfold.fold(proto)
    assert result.verification


@pytest.mark.parametrize(
    "options", [{"shapes": {"x": (0, 3, 8, 8)}}, {"dims": {"N": 0}}, {"providers": ()}, {"trials": 0}]
)
def test_nothing_compared_is_no_pass(options: dict[str, Any], wrong_fold: None) -> None:
    """Inputs without elements, no provider, no trial: a fold that is wrong must not come out as verified equal."""
    with pytest.raises((bnfold.NotVerified, UsageError)):
        bnfold.fold(conv_bn(x=("N", 3, 8, 8)), **options)


def test_switched_off_verification_is_none() -> None:
    """verify=False: no verdict at all, rather than a good one; nothing to fold: none either."""
    assert bnfold.fold(conv_bn(), verify=False).verification is None
    assert bnfold.fold(model([helper.make_node("Relu", ["x"], ["y"])], [])).verification is None


def test_free_dimensions_get_sizes_and_are_named() -> None:
    """Symbols and nameless dimensions are given sizes, the same for the same symbol, and the run lists them."""
    proto = conv_bn(x=("N", 3, "H", "H"))
    result = bnfold.fold(proto)
    assert result.verification is not None
    (run,) = result.verification.runs
    assert set(run.sizes) == {"N", "H"}
    assert run.shapes["x"] == (run.sizes["N"], 3, run.sizes["H"], run.sizes["H"])
    given = bnfold.fold(proto, dims={"N": 5}, shapes={"x": (5, 3, 6, 6)}, seed=3, threads=1)
    assert given.verification is not None
    assert given.verification.runs[0].shapes == {"x": (5, 3, 6, 6)}
    assert given.verification.runs[0].sizes == {}
    graph = result.model.graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in graph.dim] == ["N", 3, "H", "H"]


def test_sizes_are_tried_until_one_runs() -> None:
    """A network that only takes 224 x 224 with free dimensions is verified all the same."""
    reshape = helper.make_node("Reshape", ["z", "shape"], ["y"])
    proto = behind(reshape, x=("N", 3, "H", "W"))
    proto.graph.initializer.append(tensor("shape", [-1, 4 * 222 * 222], np.int64))
    result = bnfold.fold(proto, trials=1)
    assert result.verification is not None
    assert result.verification.runs[0].shapes["x"][2:] == (224, 224)


def test_the_seed_decides_the_inputs() -> None:
    """The same seed gives the same numbers to the last bit; another seed others."""

    def worst(seed: int) -> float:
        verification = bnfold.fold(conv_bn((16, 8, 3, 3)), seed=seed).verification
        assert verification is not None
        assert verification.worst is not None
        return verification.worst.scale

    assert worst(1) == worst(1) != worst(2)


def test_the_reference_stands_in_for_float64(tmp_path: Path) -> None:
    """onnxruntime has no float64 Conv on the CPU: the reference evaluator compares, and the run says so."""
    proto = conv_bn()
    for held in proto.graph.initializer:
        held.CopyFrom(tensor(held.name, initializer(proto, held.name), np.float64))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    result = bnfold.fold(proto, tmp_path / "out.onnx")
    assert result.verification is not None
    (run,) = result.verification.runs
    assert (run.provider, run.verdict) == ("reference", "equal")
    assert "stood in" in run.reason
    assert run.outputs[0].relative < 1e-14
