"""`bnfold verify` and `bnfold.verify`: verdicts, exit codes and what the report says, on real files and sessions."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.verification.compare import compare_arrays
from bnfold.verification.providers import Provider, parse_provider
from bnfold.verification.tolerances import parse_tolerance
from tests.conftest import MODELS, Cli, conv_bn, initializer, model, tensor

CPU_ONLY = ["CPUExecutionProvider"]


def put(proto: ModelProto, path: Path) -> Path:
    """Write a model as it is."""
    path.write_bytes(proto.SerializeToString())
    return path


def folded(original: ModelProto) -> ModelProto:
    """What bnfold makes of it, not verified."""
    return bnfold.fold(original, verify=False).model


def moved(proto: ModelProto, name: str, by: float, place: int = 2) -> ModelProto:
    """A copy in which one number of an initializer is larger by the share `by`."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    held = next(t for t in copy.graph.initializer if t.name == name)
    array = numpy_helper.to_array(held).copy()
    array.flat[place] *= 1 + by
    held.CopyFrom(numpy_helper.from_array(array, name))
    return copy


def bias_of(proto: ModelProto) -> str:
    """The name of the bias of the first node."""
    return str(proto.graph.node[0].input[2])


def mystery() -> ModelProto:
    """x -> an operator that nobody has -> y."""
    node = helper.make_node("Mystery", ["x"], ["y"], name="mystery", domain="my.domain")
    proto = model([node], [], (2, 3))
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    return proto


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and what bnfold makes of it, as files."""
    net = conv_bn()
    return put(net, tmp_path / "net.onnx"), put(folded(net), tmp_path / "folded.onnx")


# Verdicts


def test_an_honest_fold_is_equal(pair: tuple[Path, Path], cli: Cli) -> None:
    """Exit 0; the report says by what each value was judged, and what the numbers mean; stderr is empty."""
    before = {path: path.read_bytes() for path in pair[0].parent.iterdir()}
    code, out, err = cli("verify", *pair)
    assert (code, err) == (0, "")
    assert "1 value is made differently: 1 judged by weight and bias" in out
    assert "ulp of the output's scale: rounding" in out
    assert out.splitlines()[-1].startswith("equal (")
    assert {path: path.read_bytes() for path in pair[0].parent.iterdir()} == before


def test_a_wrong_bias_is_named_with_its_map(pair: tuple[Path, Path], cli: Cli) -> None:
    """Exit 1; value, node, map, both numbers and how many times over the bound are in the text and in the JSON."""
    wrong = onnx.load(pair[1])
    name = bias_of(wrong)
    expected = float(initializer(wrong, name)[2])
    put(moved(wrong, name, 1e-4), pair[1])
    found = float(initializer(onnx.load(pair[1]), name)[2])
    report = pair[1].with_name("report.json")
    code, out, err = cli("verify", *pair, "--report", report)
    assert (code, err) == (1, "")
    assert "WRONG  'y', made by Conv" in out
    assert "the bias of map 2 is" in out
    assert "times what rounding may do" in out
    tree = json.loads(report.read_text())
    assert (tree["schema"], tree["verdict"], tree["exit_code"]) == ("bnfold.verify/1", "different", 1)
    blame = tree["blame"]
    assert (blame["value"], blame["map"], blame["what"]) == ("y", 2, "bias")
    assert blame["expected"] == pytest.approx(expected, rel=1e-6)
    assert blame["found"] == found
    assert blame["times"] > 1


def test_json_holds_files_versions_sites_and_outputs(pair: tuple[Path, Path], cli: Cli) -> None:
    """stdout is one JSON object: digests of both files, versions, device, coverage, metrics of the output."""
    code, out, err = cli("verify", *pair, "--format", "json", "--trials", 3)
    tree = json.loads(out)
    assert (code, err, tree["verdict"]) == (0, "", "equal")
    assert [tree[side]["bytes"] for side in ("original", "folded")] == [path.stat().st_size for path in pair]
    assert tree["versions"]["onnxruntime"] == onnxruntime.__version__
    (run,) = tree["verification"]["runs"]
    assert (run["provider"], run["trials"], run["coverage"]) == ("CPUExecutionProvider", 3, "sites")
    assert run["device"]
    (output,) = run["outputs"]
    assert output["name"] == "y"
    assert output["elements"] == 2 * 4 * 7 * 7
    assert 0 <= output["mean_abs"] <= output["max_abs"]
    assert output["cosine"] == pytest.approx(1)
    assert output["snr_db"] == "inf" or output["snr_db"] > 100
    assert output["top1"] is None


@pytest.mark.parametrize("broken", ["original", "folded"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\x08", "not an ONNX model"),
    ],
    ids=["absent", "lfs", "cut"],
)
def test_unreadable_files_exit_2(
    broken: str, content: bytes | None, words: str, pair: tuple[Path, Path], cli: Cli
) -> None:
    """Either file: exit 2, and the message names that file and what is wrong with it."""
    path = pair[0] if broken == "original" else pair[1]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    code, out, err = cli("verify", *pair)
    assert (code, out) == (2, "")
    assert str(path) in err
    assert words in err


def test_an_original_that_cannot_be_loaded_is_not_verified(tmp_path: Path, cli: Cli) -> None:
    """Exit 3 with the operator's name, even where both files are the same: never a pass for what was not run."""
    path = put(mystery(), tmp_path / "net.onnx")
    code, out, err = cli("verify", path, path)
    assert (code, err) == (3, "")
    assert "Mystery" in out
    assert out.splitlines()[-1].startswith("not verified: ")


def test_a_folded_model_that_cannot_be_loaded_is_different(tmp_path: Path, cli: Cli) -> None:
    """The original loads, the other one does not: exit 1, with the runtime's reason."""
    original = put(model([helper.make_node("Relu", ["x"], ["y"])], [], (2, 3)), tmp_path / "net.onnx")
    code, out, _ = cli("verify", original, put(mystery(), tmp_path / "folded.onnx"))
    assert code == 1
    assert "does not load" in out
    assert "Mystery" in out


def test_identical_files_are_run(tmp_path: Path, cli: Cli) -> None:
    """They are equal because outputs were compared; where there is nothing to compare, they are not verified."""
    path = put(conv_bn(), tmp_path / "net.onnx")
    code, out, _ = cli("verify", path, path, "--format", "json")
    (run,) = json.loads(out)["verification"]["runs"]
    assert (code, run["trials"], run["outputs"][0]["elements"]) == (0, 3, 2 * 4 * 7 * 7)
    ends = [tensor(name, [0], np.int64) for name in ("starts", "ends", "axes")]
    empty = model([helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])], ends, (2, 3))
    path = put(empty, tmp_path / "empty.onnx")
    code, out, _ = cli("verify", path, path)
    assert code == 3
    assert "nothing was compared" in out


def test_cpu_decides_where_cuda_is_missing(
    pair: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal on the CPU and no CUDA is 3; different on the CPU is 1 all the same. The options are in the report."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CPU_ONLY)
    both = ("--provider", "cpu", "--provider", "cuda:device_id=1", "--format", "json")
    code, out, _ = cli("verify", *pair, *both)
    runs = json.loads(out)["verification"]["runs"]
    assert (code, [run["verdict"] for run in runs]) == (3, ["equal", "not verified"])
    assert runs[1]["options"] == {"device_id": "1"}
    assert "no CUDAExecutionProvider" in runs[1]["reason"]
    wrong = onnx.load(pair[1])
    put(moved(wrong, bias_of(wrong), 1e-3), pair[1])
    assert cli("verify", *pair, *both)[0] == 1
    assert cli("verify", *pair, "--provider", "cuda", "--tf32")[0] == 3


# Interface


def _rename_output(proto: ModelProto) -> None:
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "z"


def _swap_outputs(proto: ModelProto) -> None:
    first, second = proto.graph.output
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(kept)


def _redeclare(proto: ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    proto.graph.node[-1].op_type = "Cast"
    proto.graph.node[-1].attribute.append(helper.make_attribute("to", TensorProto.DOUBLE))


def _fix_batch(proto: ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _other_width(proto: ModelProto) -> None:
    proto.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "width"


def _other_default(proto: ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(tensor("shift", [1, 2, 4]))


def _constant_default(proto: ModelProto) -> None:
    del proto.graph.input[1]


def _more_defaults(proto: ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [3]))


def with_interface() -> ModelProto:
    """Outputs r = x * factor + shift and y = Relu(r); `shift` is a default that callers may replace."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    held = [tensor("shift", [1, 2, 3]), tensor("factor", [3, 2, 1])]
    proto = model(nodes, held, ("N", 3), ("N", 3), outputs=("y", "r"))
    proto.graph.input.append(helper.make_tensor_value_info("shift", TensorProto.FLOAT, [3]))
    return proto


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (_rename_output, "the outputs are 'z', 'r' instead of 'y', 'r'"),
        (_swap_outputs, "the outputs are 'r', 'y' instead of 'y', 'r' (another order)"),
        (_redeclare, "output 'y' is declared double instead of float"),
        (_fix_batch, "input 'x' is declared (1, 3) instead of (N, 3)"),
        (_other_width, "output 'r' is declared (N, width) instead of (N, 3)"),
        (_other_default, "the default of input 'shift' is another one"),
        (_constant_default, "callers can no longer replace the default of 'shift'"),
        (_more_defaults, "callers can now replace 'factor'"),
    ],
)
def test_a_difference_of_interface_is_named(change: Callable[[ModelProto], None], clause: str) -> None:
    """Names, order, types, declared shapes and defaults: each makes the models different, and is said."""
    other = with_interface()
    change(other)
    result = bnfold.verify(with_interface(), other)
    assert result.verdict == "different"
    assert any(clause in found for found in result.interface)
    assert clause in result.reason


def test_an_output_may_be_declared_more_closely() -> None:
    """Tools infer the shapes of outputs: that is no difference. The same model has none at all."""
    vague, close = conv_bn(), conv_bn()
    close.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 7, 7]))
    assert bnfold.verify(vague, close).verdict == "equal"
    assert bnfold.verify(close, vague).interface == (
        "output 'y' is declared without a shape instead of (2, 4, 7, 7)",
    )
    assert bnfold.verify(with_interface(), with_interface()).interface == ()


# Options


def test_tolerances_concern_the_outputs_only(pair: tuple[Path, Path], cli: Cli) -> None:
    """A wide one excuses no wrong bias; a narrow one finds rounding; one can be for one output, which must exist."""
    honest = onnx.load(pair[1])
    assert cli("verify", *pair, "--rtol", "1e-3", "--atol", "1e-3")[0] == 0
    code, out, _ = cli("verify", *pair, "--rtol", "y:0")
    assert code == 1
    assert "further off than asked for (rtol 0, atol 0)" in out
    code, out, err = cli("verify", *pair, "--atol", "nobody:1")
    assert (code, out) == (2, "")
    assert "the model has y" in err
    put(moved(honest, bias_of(honest), 1e-3), pair[1])
    assert cli("verify", *pair, "--rtol", "1", "--atol", "y:10")[0] == 1


def test_noise_widens_no_tolerance_that_was_asked_for() -> None:
    """(x + 1000) - 1000 against 2000: rounding, so equal; but not as close as somebody asked for."""

    def there_and_back(by: float) -> ModelProto:
        far = f"plus_{by}"  # another value, and so another name
        nodes = [helper.make_node("Add", ["x", "by"], [far]), helper.make_node("Sub", [far, "by"], ["y"])]
        return model(nodes, [tensor("by", by)], (64, 64))

    pair = there_and_back(1000), there_and_back(2000)
    honest = bnfold.verify(*pair)
    assert honest.verdict == "equal"
    assert honest.outputs[0].limit >= honest.outputs[0].relative > 128 * 2**-24
    assert bnfold.verify(*pair, atol=1e-2).verdict == "equal"
    narrow = bnfold.verify(*pair, atol=1e-6)
    assert narrow.verdict == "different"
    assert narrow.outputs[0].exceeded > 0


def test_models_with_few_common_values_are_judged_by_their_outputs(tmp_path: Path, cli: Cli) -> None:
    """Two exports of one network share inputs and outputs only: it is said so, and --require-sites makes it 3.

    There tolerances decide: a weight of the last layer that is off by 10 % is found, unless that was asked for.
    """
    net, other = MODELS / "digits_resnet.onnx", MODELS / "digits_resnet_dynamo.onnx"
    code, out, _ = cli("verify", net, other)
    assert code == 0
    assert "1 value is made differently: 1 by the outputs alone" in out
    code, out, _ = cli("verify", net, other, "--require-sites", "--trials", "1")
    assert code == 3
    assert "as --require-sites asks: 'logits'" in out
    proto = onnx.load(other)
    wrong = put(moved(proto, proto.graph.node[-1].input[1], 0.1), tmp_path / "wrong.onnx")
    code, out, _ = cli("verify", net, wrong, "--trials", "1")
    assert code == 1
    assert "output 'logits' differs by" in out
    assert cli("verify", net, wrong, "--trials", "1", "--rtol", "0.1", "--atol", "1")[0] == 0


@pytest.mark.parametrize(
    "args",
    [
        ["--tf32"],
        ["--rtol", "much"],
        ["--atol", "-1"],
        ["--rtol", ":1"],
        ["--rtol", "inf"],
        ["--atol", "1e999"],
        ["--provider", "cpu:use_arena"],
        ["--provider", "cpu:=1"],
        ["--provider", "reference:threads=1"],
        ["--provider", "cuda:use_tf32=1"],
        ["--shape", "nobody:1,2"],
        ["--report", "report.xml"],
    ],
)
def test_options_that_make_no_sense_exit_2(args: list[str], pair: tuple[Path, Path], cli: Cli) -> None:
    """Exit 2 with the reason on stderr and nothing on stdout."""
    code, out, err = cli("verify", *pair, *args)
    assert (code, out) == (2, "")
    assert err.startswith("bnfold: error: ")


def test_thorough_looks_at_what_users_deploy(pair: tuple[Path, Path], cli: Cli) -> None:
    """At least 8 inputs, onnxruntime's default level, and one provider against another, as information."""
    given = ("--provider", "cpu", "--provider", "cpu:use_arena=0")
    code, out, _ = cli("verify", *pair, *given, "--thorough", "--format", "json")
    tree = json.loads(out)["verification"]
    assert (code, [run["trials"] for run in tree["runs"]]) == (0, [8, 8])
    assert [run["options"] for run in tree["runs"]] == [{}, {"use_arena": "0"}]
    titles = [entry["title"] for entry in tree["information"]]
    assert sum("default optimisation level" in title for title in titles) == 2
    assert titles[-1] == "the folded model on CPUExecutionProvider against CPUExecutionProvider"
    assert all(entry["outputs"][0]["elements"] == 2 * 4 * 7 * 7 for entry in tree["information"])
    code, out, _ = cli("verify", *pair, "--thorough")
    assert "for information, both models at onnxruntime's default optimisation level" in out


def test_quiet_prints_a_difference_only(pair: tuple[Path, Path], cli: Cli) -> None:
    """-q: nothing where they are equal; one line on stderr where they are not, with the same exit code."""
    assert cli("verify", *pair, "-q") == (0, "", "")
    wrong = onnx.load(pair[1])
    put(moved(wrong, bias_of(wrong), 1e-3), pair[1])
    code, out, err = cli("verify", *pair, "-q")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the bias of map 2" in err


def test_names_start_no_command_of_github(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """In GitHub Actions no line of the report starts with `::`, and none holds `##[`, whatever a value is called."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    net = conv_bn()
    net.graph.node[1].output[0] = net.graph.output[0].name = "##[error]y\n::error::y"
    wrong = folded(net)
    paths = put(net, tmp_path / "net.onnx"), put(moved(wrong, bias_of(wrong), 1e-3), tmp_path / "##[error].onnx")
    for extra in ((), ("--format", "json"), ("-q",)):
        code, out, err = cli("verify", *paths, *extra)
        assert code == 1
        assert "##[" not in out + err
        assert not any(line.lstrip().startswith("::") for line in (out + err).splitlines())
    tree = json.loads(cli("verify", *paths, "--format", "json")[1])
    assert tree["folded"]["path"] == str(paths[1])


# The API


def test_the_api_answers_with_a_verification(pair: tuple[Path, Path]) -> None:
    """True for equal only; `raise_unless_equal` raises errors that carry the verdict, with the exit codes."""
    net = conv_bn()
    equal = bnfold.verify(net, pair[1])
    assert equal
    assert equal.blame is None
    equal.raise_unless_equal()
    wrong = moved(folded(net), bias_of(folded(net)), 1e-3)
    different = bnfold.verify(pair[0], wrong, providers="cpu")
    assert not different
    with pytest.raises(bnfold.VerificationFailed, match="the bias of map 2") as caught:
        different.raise_unless_equal()
    assert caught.value.result is different
    assert different.blame is not None
    assert (different.blame.value, different.blame.map) == ("y", 2)
    unknown = bnfold.verify(mystery(), mystery())
    assert not unknown
    with pytest.raises(bnfold.NotVerified, match="Mystery") as missed:
        unknown.raise_unless_equal()
    assert missed.value.exit_code == 3
    with pytest.raises(bnfold.UsageError, match="a path or a ModelProto"):
        bnfold.verify(net, None)  # type: ignore[arg-type]
    with pytest.raises(bnfold.UsageError, match="finite"):
        bnfold.verify(net, net, rtol=math.nan)


def test_external_data_is_read_on_both_sides(tmp_path: Path) -> None:
    """Also through links, where that is asked for; else a link is an error, as it is for `fold`."""
    real = tmp_path / "real"
    real.mkdir()
    net = conv_bn()
    paths = []
    for name, proto in (("net", net), ("folded", folded(net))):
        path = real / f"{name}.onnx"
        onnx.save(proto, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        paths.append(path)
    assert bnfold.verify(*paths).verdict == "equal"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "folded.onnx").write_bytes(paths[1].read_bytes())
    (linked / "folded.data").symlink_to(real / "folded.data")
    with pytest.raises(bnfold.InvalidModelError, match=r"folded\.onnx"):
        bnfold.verify(paths[0], linked / "folded.onnx")
    assert bnfold.verify(paths[0], linked / "folded.onnx", follow_links=True).verdict == "equal"


# Numbers


def test_metrics_are_those_of_numpy() -> None:
    """Mean, cosine, SNR and top-1 of class scores, against their formulas, in float32 and far from 1."""
    rng = np.random.default_rng(3)
    first = rng.normal(size=(50, 7)).astype(np.float32) * np.float32(1e-20)
    second = (first + rng.normal(size=first.shape) * 1e-21).astype(np.float32)
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    found = compare_arrays("y", first, second)
    assert found.mean_abs == pytest.approx(np.abs(b - a).mean(), rel=1e-12)
    assert found.cosine == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=1e-12)
    assert found.snr_db == pytest.approx(10 * math.log10((a @ a) / ((b - a) @ (b - a))), rel=1e-12)
    assert found.top1 == np.mean(first.argmax(1) == second.argmax(1)) < 1
    scores = np.array([[[0, 1, 2], [2, 1, 0], [1, 0, 2]], [[1, 0, 2], [2, 0, 1], [3, 0, 2]]], np.float32)
    assert compare_arrays("y", scores[0], scores[1]).top1 == 2 / 3
    same = compare_arrays("y", first, first)
    assert (same.snr_db, same.top1, same.mean_abs) == (math.inf, 1, 0)
    assert compare_arrays("y", first[..., None], second[..., None]).top1 is None
    nothing = compare_arrays("y", np.zeros((2, 3)), np.zeros((2, 3)))
    assert (nothing.cosine, nothing.snr_db) == (None, None)


def test_metrics_of_the_largest_numbers_are_finite() -> None:
    """Squares of 1e300 overflow; cosine and SNR do not."""
    huge = np.array([[1e300, -2e300, 3e300]])
    found = compare_arrays("y", huge, huge * (1 + 1e-9))
    assert found.cosine == pytest.approx(1)
    assert found.snr_db == pytest.approx(180, abs=0.1)


def test_options_parse() -> None:
    """Names may hold colons; options of providers come in the order that they were given in."""
    assert parse_tolerance("--rtol", "1e-3") == ("", 1e-3)
    assert parse_tolerance("--rtol", "a:b:.5") == ("a:b", 0.5)
    given: Any = "CUDAExecutionProvider:device_id=1,gpu_mem_limit=5"
    expected = Provider("CUDAExecutionProvider", (("device_id", "1"), ("gpu_mem_limit", "5")))
    assert parse_provider(given) == parse_provider("cuda:device_id=1,gpu_mem_limit=5") == expected
