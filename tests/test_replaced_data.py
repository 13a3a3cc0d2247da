"""Data of a model that was replaced: removed where nothing else can refer to it, kept and named otherwise."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnfold
from bnfold import cleanup
from tests.conftest import Cli, conv_bn
from tests.test_external import assert_folded, externalise, files_of, network, unfoldable
from tests.test_links import relocate

posix = pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("file", ["weights.bin", "{}.bin", "deep/er/{}.bin", "./weights.bin"])
def test_in_place_removes_the_old_data(file: str, tmp_path: Path, cli: Cli) -> None:
    """One file, many, in subfolders: all go once the new model is in its place, and the report names each."""
    source = externalise(network(), tmp_path / "model.onnx", file=file)
    old = {path for path in tmp_path.rglob("*.bin") if path.is_file()}
    code, out, _ = cli("fold", source, "--in-place")
    assert code == 0
    assert not [path for path in old if path.exists()]
    line = next(line for line in out.splitlines() if line.startswith("removed: "))
    assert all(path.name in line for path in old)
    assert "no longer used" not in out
    assert_folded(network(), source)


def test_the_report_says_it_in_json_too(tmp_path: Path, cli: Cli) -> None:
    """`removed` holds locations as the old model wrote them; `superseded` is empty then."""
    source = externalise(network(), tmp_path / "model.onnx", file="deep/{}.bin")
    tree = json.loads(cli("fold", source, "--in-place", "--format", "json")[1])
    assert tree["removed"] == sorted(f"deep/{name}.bin" for name in ("w", "b", "gamma", "beta", "mean", "var", "k"))
    assert tree["superseded"] == []


def _twin(folder: Path) -> None:
    (folder / "other.onnx").write_bytes((folder / "model.onnx").read_bytes())


def _twin_above(folder: Path) -> None:
    (folder.parent / "other.txt").write_text("needs model/weights.bin, please", encoding="utf-8")


def _linked_twin(folder: Path) -> None:
    (folder.parent / "far").mkdir()
    (folder.parent / "far" / "blob").write_bytes((folder / "model.onnx").read_bytes())
    (folder / "linked.onnx").symlink_to(folder.parent / "far" / "blob")


def _late_name(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(2**23 - 5) + b"weights.bin")  # across the pieces that are read


def _backup(folder: Path) -> None:
    (folder / "model.onnx.bak").write_bytes((folder / "model.onnx").read_bytes())


REFERRERS = {
    "another model": _twin, "a text above": _twin_above, "a model by a link": _linked_twin,
    "far into a file": _late_name, "a copy of the old model": _backup,
}  # fmt: skip


@posix
@pytest.mark.parametrize("case", REFERRERS)
def test_data_that_another_file_names_is_kept(case: str, tmp_path: Path, cli: Cli) -> None:
    """Beside the model or one folder up, whatever kind of file: kept, and reported as no longer used."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = externalise(network(), folder / "model.onnx")
    REFERRERS[case](folder)
    before = (folder / "weights.bin").read_bytes()
    code, out, _ = cli("fold", source, "--in-place")
    assert code == 0
    assert (folder / "weights.bin").read_bytes() == before
    assert "no longer used by this model: weights.bin" in out
    assert "removed:" not in out
    assert_folded(network(), source)


def test_each_data_file_is_judged_by_itself(tmp_path: Path) -> None:
    """Of many, the one that another file names stays, the others go."""
    source = externalise(network(), tmp_path / "model.onnx", file="{}.bin")
    (tmp_path / "notes.txt").write_text("see gamma.bin", encoding="utf-8")
    report = bnfold.fold(source, in_place=True).report
    assert report.superseded == ("gamma.bin",)
    assert sorted(report.removed) == sorted(f"{name}.bin" for name in ("w", "b", "beta", "mean", "var", "k"))
    assert names(tmp_path) == {*files_of(source), "gamma.bin", "notes.txt"}


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_FILES"])
def test_what_is_too_much_to_search_keeps_the_data(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More bytes or files around than anybody wants to wait for: nobody knows, so nothing goes."""
    source = externalise(network(), tmp_path / "model.onnx")
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(b"nothing")
    monkeypatch.setattr(cleanup, limit, 2)
    assert bnfold.fold(source, in_place=True).report.superseded == ("weights.bin",)
    assert (tmp_path / "weights.bin").exists()


def test_a_file_that_cannot_be_read_keeps_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be looked into may name anything."""
    source = externalise(network(), tmp_path / "model.onnx")
    (tmp_path / "secret").write_bytes(b"private")
    real = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "secret":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert bnfold.fold(source, in_place=True, verify=False).report.superseded == ("weights.bin",)


def test_nothing_is_removed_where_nothing_is_written(tmp_path: Path, wrong_fold: None) -> None:
    """A fold that fails its verification leaves model and data."""
    source = externalise(network(), tmp_path / "model.onnx")
    with pytest.raises(bnfold.VerificationFailed):
        bnfold.fold(source, in_place=True)
    assert names(tmp_path) == {"model.onnx", "weights.bin"}


# --force over another model


@pytest.mark.parametrize("how", ["fold", "save"])
def test_the_data_of_an_overwritten_model_goes(how: str, tmp_path: Path) -> None:
    """Another model with external data at the target: it goes with its data, and the input's own data stays."""
    source = externalise(network(), tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()
    target = externalise(conv_bn(seed=3), tmp_path / "out" / "taken.onnx", file="taken/{}.bin")
    if how == "fold":
        report = bnfold.fold(source, target, force=True).report
        assert len(report.removed) == 5
    else:
        bnfold.fold(source).save(target, force=True)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == files_of(target)
    assert (tmp_path / "weights.bin").exists()
    assert_folded(network(), target)


def test_data_that_is_used_again_is_not_reported(tmp_path: Path) -> None:
    """Only an inline tensor changed, so the new data is the old, under its name: neither kept nor gone."""
    source = externalise(network(), tmp_path / "model.onnx", ("k",), file="./model.onnx.data")
    report = bnfold.fold(source, in_place=True).report
    assert (report.removed, report.superseded) == ((), ())
    assert names(tmp_path) == {"model.onnx", "model.onnx.data"}
    assert_folded(network(), source)


def test_a_new_fold_over_an_old_output_leaves_one_data_file(tmp_path: Path) -> None:
    """The output of an older input, written over by the new one's: no orphan stays behind."""
    target = tmp_path / "out.onnx"
    bnfold.fold(externalise(conv_bn(seed=1), tmp_path / "first.onnx", file="first.bin"), target)
    second = externalise(network(), tmp_path / "second.onnx", file="second.bin")
    report = bnfold.fold(second, target, force=True).report
    assert report.removed == ("out.onnx.data",)
    assert names(tmp_path) == {"first.onnx", "first.bin", "second.onnx", "second.bin", *files_of(target)}
    assert_folded(network(), target)


def test_data_that_the_input_shares_with_the_target_stays(tmp_path: Path) -> None:
    """An unchanged copy beside the original shares its data; when that copy is replaced, the original keeps it."""
    source = externalise(unfoldable(), tmp_path / "model.onnx")
    target = tmp_path / "copy.onnx"
    bnfold.fold(source, target)
    for _ in range(2):
        report = bnfold.fold(source, target, force=True).report
        assert (report.removed, report.superseded) == ((), ())
    onnx.load(source)
    onnx.load(target)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"location weights.bin", id="text"),
        pytest.param(b"\x3a\xff\xff\xff\xff\x07location", id="cut-short"),
    ],
)
def test_what_is_overwritten_may_be_any_file(content: bytes, tmp_path: Path) -> None:
    """--force over what is no model: it is replaced, and nothing else is touched."""
    source = externalise(network(), tmp_path / "model.onnx")
    (tmp_path / "out.onnx").write_bytes(content)
    report = bnfold.fold(source, tmp_path / "out.onnx", force=True).report
    assert (report.removed, report.superseded) == ((), ())
    assert names(tmp_path) == {"model.onnx", "weights.bin", "out.onnx", "out.onnx.data"}


def _outside(folder: Path) -> str:
    (folder.parent / "w").write_bytes(bytes(432))
    return "../w"


def _absolute(folder: Path) -> str:
    (folder.parent / "w").write_bytes(bytes(432))
    return str(folder.parent / "w")


def _link(folder: Path) -> str:
    (folder.parent / "w").write_bytes(bytes(432))
    (folder / "w").symlink_to(folder.parent / "w")
    return "w"


def _hard(folder: Path) -> str:
    (folder.parent / "w").write_bytes(bytes(432))
    os.link(folder.parent / "w", folder / "w")
    return "w"


@posix
@pytest.mark.parametrize("prepare", [_outside, _absolute, _link, _hard])
def test_a_hostile_target_makes_nothing_else_go(prepare: Callable[[Path], str], tmp_path: Path) -> None:
    """What an overwritten model names outside its folder, or by links, is not removed for it."""
    source = externalise(network(), tmp_path / "model.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    target = externalise(conv_bn(seed=3), folder / "taken.onnx", file="w.bin")
    (folder / "w.bin").unlink()
    relocate(target, prepare(folder))
    report = bnfold.fold(source, target, force=True).report
    assert report.removed == ()
    assert (tmp_path / "w").read_bytes() == bytes(432)
    assert os.path.lexists(folder / "w") == (prepare in (_link, _hard))
