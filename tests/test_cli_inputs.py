"""Own inputs, libraries and kept differences through the command line: real files, real sessions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from tests.conftest import MODELS, Cli, conv_bn, run
from tests.test_seeds import library_of_nothing

DIGITS = MODELS / "digits_resnet.onnx"
X = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """x (2, 3, 9, 9) -> Conv -> BatchNormalization -> y (2, 4, 7, 7), as a file."""
    onnx.save(conv_bn(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """What bnfold makes of `net`, with one bias off by 1."""
    folded = bnfold.fold(conv_bn(), verify=False).model
    held = next(t for t in folded.graph.initializer if t.name == folded.graph.node[0].input[2])
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + np.float32([0, 1, 0, 0]), held.name))
    onnx.save(folded, tmp_path / "wrong.onnx")
    return tmp_path / "wrong.onnx"


def first_run(out: str) -> dict[str, Any]:
    """The run of the only provider, of any command's JSON report."""
    report = json.loads(out)
    verification = report["models"][0]["verification"] if "models" in report else report["verification"]
    (found,) = verification["runs"]
    return dict(found)


@pytest.mark.parametrize("command", ["fold", "verify", "check"])
def test_input_data_is_what_is_compared_on(command: str, net: Path, tmp_path: Path, cli: Cli) -> None:
    """Each file given is one trial, named in the report, and nothing is made up beside it."""
    np.savez(tmp_path / "one.npz", x=X)
    np.save(tmp_path / "two.npy", 10 * X)
    models = [net, net] if command == "verify" else [net]
    allow = ["--allow-foldable"] if command == "check" else []
    data = ["--input-data", tmp_path / "one.npz", "--input-data", tmp_path / "two.npy"]
    code, out, err = cli(command, *models, *allow, *data, "--format", "json")
    assert (code, err) == (0, "")
    found = first_run(out)
    assert (found["verdict"], found["trials"], found["shapes"]) == ("equal", 2, {"x": [2, 3, 9, 9]})
    assert ["one.npz" in found["inputs"][0]["name"], "two.npy" in found["inputs"][1]["name"]] == [True, True]


def test_input_data_takes_part_in_the_verdict(net: Path, wrong: Path, tmp_path: Path, cli: Cli) -> None:
    """A wrong fold is different on them; data for another model, a size beside them, no file: usage, one line."""
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "other.npz", z=X)
    assert cli("verify", net, wrong, "--input-data", tmp_path / "x.npy")[0] == 1
    for given, word in (
        (["--input-data", tmp_path / "other.npz"], "'z'"),
        (["--input-data", tmp_path / "none.npz"], "no such file"),
        (["--input-data", tmp_path / "x.npy", "--shape", "x:2,3,9,9"], "made-up inputs"),
    ):
        code, out, err = cli("verify", net, net, *given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert word in err


@pytest.mark.parametrize("command", ["fold", "verify"])
def test_labels_give_the_accuracy_of_both(command: str, tmp_path: Path, cli: Cli) -> None:
    """As counted here; the text says it in words. Answers that changed are counted where the fold is wrong."""
    held = np.load(MODELS / "digits_test.npz")
    images, labels = held["pixel_values"][:40], held["labels"][:40]
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "labels.csv").write_text("".join(f"{label}\n" for label in labels))
    right = int((run(DIGITS, {"pixel_values": images})[0].argmax(axis=1) == labels).sum())
    shutil.copy(DIGITS, tmp_path / "net.onnx")
    models = [tmp_path / "net.onnx", DIGITS] if command == "verify" else [tmp_path / "net.onnx"]
    data = ["--input-data", tmp_path / "x.npy", "--input-data", tmp_path / "labels.csv"]
    code, out, err = cli(command, *models, *data, "--report", tmp_path / "report.json")
    assert (code, err) == (0, "")
    found = first_run((tmp_path / "report.json").read_text())["accuracy"]
    assert found == {"output": "logits", "samples": 40, "before": right, "after": right, "changed": 0}
    share = f"{right / 40:.2%}"
    assert f"accuracy of 'logits' on 40 labels: {share} before, {share} after, 0 answers changed" in out


@pytest.mark.parametrize("command", ["fold", "verify", "check"])
def test_a_data_script_is_run(command: str, net: Path, tmp_path: Path, cli: Cli) -> None:
    """Three dicts are three trials; what the script prints stays out of the report."""
    text = """
import numpy as np
def data():
    print("out of the way")
    for size in range(3):
        yield {"x": np.full((2, 3, 9, 9), size, np.float32)}
"""
    (tmp_path / "script.py").write_text(text)
    models = [net, net] if command == "verify" else [net]
    allow = ["--allow-foldable"] if command == "check" else []
    code, out, _ = cli(command, *models, *allow, "--data-script", f"{tmp_path}/script.py:data", "--format", "json")
    assert code == 0
    found = first_run(out)
    assert (found["verdict"], found["trials"]) == ("equal", 3)
    assert all("script.py:data" in fed["name"] for fed in found["inputs"])


def test_a_data_script_that_fails_is_usage(net: Path, tmp_path: Path, cli: Cli) -> None:
    """Exit 2 and one line with the script's own; a fold with it writes nothing."""
    (tmp_path / "script.py").write_text("def data():\n    return 1 / 0\n")
    code, out, err = cli("fold", net, "--data-script", f"{tmp_path}/script.py:data")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "line 2: ZeroDivisionError" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["net.onnx", "script.py"]


def test_what_differs_is_kept_and_can_be_fed_again(net: Path, wrong: Path, tmp_path: Path, cli: Cli) -> None:
    """`verify` names the file it kept; the same inputs show the same difference; equal models leave no file."""
    folder = tmp_path / "kept"
    code, out, _ = cli("verify", net, wrong, "--save-failing", folder)
    (kept,) = folder.iterdir()
    assert code == 1
    assert f"inputs and outputs that differ -> {kept}" in out
    with np.load(kept) as saved:
        expected = run(net, {"x": saved["inputs/x"]})[0]
        np.testing.assert_array_equal(saved["original/y"], expected)
        np.testing.assert_array_equal(saved["folded/y"], run(wrong, {"x": saved["inputs/x"]})[0])
    assert cli("verify", net, wrong, "--input-data", kept)[0] == 1
    assert cli("verify", net, net, "--save-failing", tmp_path / "none")[0] == 0
    assert not any((tmp_path / "none").glob("*"))


@pytest.mark.usefixtures("wrong_fold")
def test_a_fold_that_fails_keeps_what_differs(net: Path, tmp_path: Path, cli: Cli) -> None:
    """`fold` ends with 1, writes no model, and leaves the inputs that show it; `check` as well."""
    code, out, _ = cli("fold", net, "--save-failing", tmp_path / "kept", "--format", "json")
    assert code == 1
    (kept,) = (tmp_path / "kept").iterdir()
    assert first_run(out)["saved"] == str(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "net.onnx"]
    assert cli("check", net, "--save-failing", tmp_path / "also")[0] == 1
    assert any((tmp_path / "also").iterdir())


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to make a library")
@pytest.mark.parametrize("command", ["fold", "verify", "check"])
def test_a_library_of_custom_operators_is_loaded(command: str, net: Path, tmp_path: Path, cli: Cli) -> None:
    """Every command hands it to onnxruntime, for both models at least, and ends as without it."""
    library, log = library_of_nothing(tmp_path)
    models = [net, net] if command == "verify" else [net]
    allow = ["--allow-foldable"] if command == "check" else []
    code, _, err = cli(command, *models, *allow, "--custom-op-library", library)
    assert (code, err) == (0, "")
    assert log.read_text().count("registered") >= 2


def test_a_library_that_is_none_is_usage(net: Path, tmp_path: Path, cli: Cli) -> None:
    """Missing, or no library at all: exit 2, one line with its name, nothing written."""
    (tmp_path / "text.so").write_text("this is no library")
    for name, word in (("none.so", "no such file"), ("text.so", "does not load")):
        code, out, err = cli("fold", net, "--custom-op-library", tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert name in err
        assert word in err
    assert not (tmp_path / "net.folded.onnx").exists()
