"""A model that grows over the 2 GiB of one protobuf file goes into an .onnx and a data file by itself.

The limit is lowered here; the arithmetic and the files are the real ones.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold import document, sweep, wire
from tests.conftest import Cli, batchnorm_parameters, model, tensor
from tests.test_external import assert_folded, externalise, files_of, listing
from tests.test_shared_data import numbers


def growing() -> ModelProto:
    """x -> Conv(w) -> c -> BatchNormalization -> y; c -> Relu -> z: with clone_shared w is there twice."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="bn"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "small"], ["z"], name="add"),
    ]
    held = [tensor("w", rng.normal(size=(32, 16, 3, 3))), tensor("b", rng.normal(size=32)), tensor("small", [1.0])]
    proto = model(nodes, held + batchnorm_parameters(32), (1, 16, 8, 8), y=(1, 32, 6, 6), outputs=("y", "z"))
    typed = next(t for t in proto.graph.initializer if t.name == "b")
    values = np.frombuffer(typed.raw_data, np.float32)
    typed.ClearField("raw_data")
    typed.float_data.extend(values.tolist())
    return proto


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> int:
    """The limit, between the sizes of the model before and after, and of its one large tensor and of two."""
    limit = len(growing().SerializeToString()) + 1000
    monkeypatch.setattr(document, "PROTOBUF_LIMIT", limit)
    return limit


def outside(path: Path) -> set[str]:
    """The names of external initializers."""
    proto = onnx.load(path, load_external_data=False)
    return {t.name for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL}


@pytest.mark.parametrize("lifting", ["parsed", "number-by-number", "put-in-when-written", "lifted"])
@pytest.mark.parametrize("place", ["other", "in-place", "save"])
def test_it_switches_to_external_data(
    lifting: str, place: str, low: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both weights of a KiB and more lie in one page-aligned file, the rest inline; the numbers are the fold's."""
    proto = growing()
    if lifting == "number-by-number":
        values = np.frombuffer(proto.graph.initializer[0].raw_data, np.float32)
        proto.graph.initializer[0].ClearField("raw_data")
        proto.graph.initializer[0].float_data.extend(values.tolist())
    elif lifting != "parsed":
        monkeypatch.setattr(wire, "SMALLEST", 16)
        monkeypatch.setattr(sweep, "SMALLEST", 16)
    if lifting == "lifted":
        monkeypatch.setattr(document, "LIFT_FROM", 0)
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(proto, source)
    result = bnfold.fold(source, clone_shared=True)
    assert result.verification
    expected = numbers(result.model)
    if place == "save":
        result.save(target)
    elif place == "other":
        result = bnfold.fold(source, target, clone_shared=True)
    else:
        target = source
        result = bnfold.fold(source, in_place=True, clone_shared=True)
    assert target.stat().st_size < low
    assert numbers(onnx.load(target)) == expected
    assert outside(target) == {"w", "w_folded"}
    held = onnx.load(target, load_external_data=False).graph.initializer
    fields = [{entry.key: entry.value for entry in t.external_data} for t in held if t.name in ("w", "w_folded")]
    assert [int(entry["offset"]) for entry in fields] == [0, 20480]
    assert_folded(growing(), target)
    assert numbers(inlined(result.model, target.parent)) == expected


def inlined(proto: ModelProto, folder: Path) -> ModelProto:
    """The model with its external data read in from `folder`."""
    onnx.load_external_data_for_model(proto, str(folder))
    return proto


def test_the_report_says_so(low: int, tmp_path: Path, cli: Cli) -> None:
    """Text and JSON: how many tensors went out, into which file, and why; without the need there is no word of it."""
    source = tmp_path / "model.onnx"
    onnx.save(growing(), source)
    code, out, err = cli("fold", source, "--clone-shared", "-o", tmp_path / "out.onnx")
    assert (code, err) == (0, "")
    assert "note: one file ends at 2 GiB: 2 tensors went into external data, out.onnx.data" in out
    tree = json.loads(cli("fold", source, "--clone-shared", "--in-place", "--format", "json")[1])
    assert len(tree["notes"]) == 1
    assert "model.onnx.data" in tree["notes"][0]
    assert tree["after"]["bytes"] == sum((tmp_path / name).stat().st_size for name in files_of(source))


def test_it_stays_inline_where_it_fits(tmp_path: Path) -> None:
    """At the usual limit the same fold is one file."""
    onnx.save(growing(), tmp_path / "model.onnx")
    result = bnfold.fold(tmp_path / "model.onnx", tmp_path / "out.onnx", clone_shared=True)
    assert sorted(listing(tmp_path)) == ["model.onnx", "out.onnx"]
    assert result.report.notes == ()


def test_a_model_in_memory_is_verified_and_saved(low: int, tmp_path: Path) -> None:
    """A ModelProto whose fold does not fit: verified by way of a temporary folder, and `save` writes two files."""
    result = bnfold.fold(growing(), clone_shared=True)
    assert result.verification
    for name in ("one.onnx", "two.onnx"):
        result.save(tmp_path / name)
        assert_folded(growing(), tmp_path / name)
    assert sorted(listing(tmp_path)) == ["one.onnx", "one.onnx.data", "two.onnx", "two.onnx.data"]
    assert numbers(result.model) == numbers(onnx.load(tmp_path / "two.onnx"))


def test_a_mixed_model_joins_the_one_data_file(low: int, tmp_path: Path) -> None:
    """What was external already and what had to go out lie in one new file."""
    proto = growing()
    proto.graph.initializer.append(tensor("k", np.arange(600)))
    proto.graph.node.append(helper.make_node("Identity", ["k"], ["unused"]))
    source = externalise(proto, tmp_path / "model.onnx", ("k",))
    bnfold.fold(source, tmp_path / "out.onnx", clone_shared=True)
    assert outside(tmp_path / "out.onnx") == {"k", "w", "w_folded"}
    assert sorted(listing(tmp_path)) == ["model.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    assert_folded(proto, tmp_path / "out.onnx")


def test_what_cannot_shrink_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Where the nodes and names alone are too much, no data file helps: exit 2, and nothing is left."""
    monkeypatch.setattr("bnfold.document.Document.pieces", _too_large)
    onnx.save(growing(), tmp_path / "model.onnx")
    code, _, err = cli("fold", tmp_path / "model.onnx", "--clone-shared")
    assert code == 2
    assert "2 GiB" in err
    assert list(listing(tmp_path)) == ["model.onnx"]


def _too_large(*_: Any) -> Any:
    raise bnfold.document.TooLargeError("the folded model would have 3 GB; a protobuf file ends at 2 GiB")
