"""Where a report may be written: never over a file of a model, and a fold that was done is never hidden by it."""

import os
from pathlib import Path

import onnx
import pytest

from tests.conftest import Cli, conv_bn
from tests.test_external import externalise


@pytest.mark.parametrize("command", ["inspect", "fold"])
def test_a_report_over_external_data_is_refused(command: str, tmp_path: Path, cli: Cli) -> None:
    """The data file ends in .txt: nothing is written over it, and nothing is folded."""
    externalise(conv_bn(), tmp_path / "net.onnx", file="w.txt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = cli(command, tmp_path / "net.onnx", "--report", tmp_path / "w.txt")
    assert (code, out) == (2, "")
    assert "that is a file of the model itself" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "dangling link", "folder"])
def test_a_report_goes_to_a_file_of_its_own(kind: str, tmp_path: Path, cli: Cli) -> None:
    """A link or a folder under the name of the report stops the fold before it begins."""
    source, report = tmp_path / "net.onnx", tmp_path / "r.txt"
    onnx.save(conv_bn(), source)
    if kind == "folder":
        report.mkdir()
    elif kind == "hard link":
        os.link(source, report)
    else:
        report.symlink_to(source if kind == "symbolic link" else tmp_path / "nothing")
    before = source.read_bytes()
    code, _, err = cli("fold", source, "--in-place", "--report", report)
    assert code == 2
    assert "r.txt" in err
    assert source.read_bytes() == before


def test_a_report_that_cannot_be_written_says_that_the_model_was(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once the model is in its place: stdout still has the report, the error says what was done."""
    source = tmp_path / "net.onnx"
    onnx.save(conv_bn(), source)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, out, err = cli("fold", source, "--in-place", "--no-verify", "--report", tmp_path / "r.json")
    assert code == 2
    assert "written" in out
    assert "No space left on device; the model was written" in err


def test_unfold_does_not_write_over_the_folded_data(tmp_path: Path, cli: Cli) -> None:
    """--force is about the output, not about the file that is read from."""
    externalise(conv_bn(), tmp_path / "net.onnx")
    assert cli("fold", tmp_path / "net.onnx", "-o", tmp_path / "o.onnx", "--undo-file", tmp_path / "u")[0] == 0
    before = (tmp_path / "o.onnx.data").read_bytes()
    code, _, err = cli("unfold", tmp_path / "o.onnx", tmp_path / "u", "-o", tmp_path / "o.onnx.data", "--force")
    assert code == 2
    assert "external data" in err
    assert (tmp_path / "o.onnx.data").read_bytes() == before


@pytest.mark.parametrize(("location", "fields"), [("w.bin", ("location",)), ("./w.bin", ("location", "length"))])
def test_undo_of_a_byte_copy_takes_any_spelling_of_its_data(
    location: str, fields: tuple[str, ...], tmp_path: Path, cli: Cli
) -> None:
    """Nothing folds, and the model's own external data has no length, or a location with a dot before it."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) <float[1] k = {2}>{ y = Add (x, k) }'
    )
    proto.graph.initializer[0].raw_data = b"\0\0\0\x40"
    proto.graph.initializer[0].ClearField("float_data")
    externalise(proto, tmp_path / "net.onnx", file=location, fields=fields)
    for number, place in enumerate((["-o", tmp_path / "o.onnx"], ["--in-place"])):
        assert cli("fold", tmp_path / "net.onnx", *place, "--undo-file", tmp_path / f"u{number}")[0] == 0
    assert cli("unfold", tmp_path / "o.onnx", tmp_path / "u0", "-o", tmp_path / "back.onnx")[0] == 0
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
