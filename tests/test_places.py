"""Where files may be and what they may be called: read-only, full and far folders, long and odd names, hard links."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnfold
from bnfold.errors import OutputError
from tests.conftest import Cli, conv_bn, ops
from tests.test_external import assert_folded, external_names, externalise, files_of, listing, network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="mounts, modes and links as POSIX has them")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `folder`; skips the test where this process may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("only a process with the right to mount can make a full or read-only file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the options of a mount."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that nothing can be written to: by its mode, or by a mount where modes do not bind (root)."""
    if os.geteuid():
        folder.mkdir()
        yield folder
        folder.chmod(0o755)
        return
    with mounted(folder, "size=8m"):
        yield folder


def close(folder: Path) -> None:
    """From now on the folder is read-only."""
    if os.geteuid():
        folder.chmod(0o555)
    else:
        remount(folder, "ro")


@pytest.mark.parametrize("external", [True, False])
def test_a_read_only_folder_is_read_and_not_written(external: bool, tmp_path: Path, cli: Cli) -> None:  # noqa: FBT001
    """From it to elsewhere: folds. Into it, in place or beside: exit 2, one line that says why, nothing changed."""
    with read_only(tmp_path / "closed") as folder:
        source = externalise(network(), folder / "model.onnx", None if external else ())
        before = listing(folder)
        close(folder)
        assert cli("fold", source, "-o", tmp_path / "out.onnx")[0] == 0
        assert_folded(network(), tmp_path / "out.onnx")
        for args in ([], ["--in-place"], ["-o", folder / "other.onnx"]):
            code, out, err = cli("fold", source, *args)
            assert (code, out) == (2, "")
            assert "cannot write" in err
            assert err.count("\n") == 1
        assert bnfold.fold(source).verification
        assert listing(folder) == before


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("space", [2, 20, 100, 290, 310])
def test_a_full_disk_leaves_what_was_there(space: int, external: bool, tmp_path: Path, cli: Cli) -> None:  # noqa: FBT001
    """A real one, with this many KiB free: the model is folded, or exit 2 says that there is no space; never half."""
    proto = conv_bn((64, 64, 3, 3), bias=True)
    with mounted(tmp_path / "disk", "size=2m") as folder:
        source = externalise(proto, folder / "model.onnx", None if external else ())
        before = listing(folder)
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - space * 1024
        (folder / "ballast").write_bytes(bytes(free))
        code, _, err = cli("fold", source, "--in-place", "--no-verify")
        (folder / "ballast").unlink()
        if code == 0:
            assert "BatchNormalization" not in ops(onnx.load(source))
            assert set(listing(folder)) == files_of(source)
        else:
            assert code == 2
            assert "No space left on device" in err
            assert listing(folder) == before
        assert (code == 0) == (space >= 160)


def test_a_full_temporary_folder_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying a model with external data in memory needs one: where there is none, the message names it."""
    source = externalise(network(), tmp_path / "model.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match="absent"):
        bnfold.fold(source)


def test_the_target_may_be_on_another_file_system(tmp_path: Path, cli: Cli) -> None:
    """Temporary files stand beside the target, so nothing is ever renamed from one file system to another."""
    source = externalise(network(), tmp_path / "model.onnx")
    with mounted(tmp_path / "far", "size=8m") as folder:
        assert folder.stat().st_dev != tmp_path.stat().st_dev
        assert cli("fold", source, "-o", folder / "out.onnx")[0] == 0
        assert_folded(network(), folder / "out.onnx")
        assert sorted(listing(folder)) == ["out.onnx", "out.onnx.data"]


@pytest.mark.parametrize("external", [True, False])
def test_a_hard_linked_model_in_place(external: bool, tmp_path: Path, cli: Cli) -> None:  # noqa: FBT001 - a parameter
    """The other name keeps the old bytes, and with external data keeps that, as it may be what the other needs."""
    source = externalise(network(), tmp_path / "model.onnx", None if external else ())
    old = source.read_bytes()
    os.link(source, tmp_path / "twin.onnx")
    assert cli("fold", source, "--in-place")[0] == 0
    assert (tmp_path / "twin.onnx").read_bytes() == old
    assert ops(onnx.load(tmp_path / "twin.onnx")).count("BatchNormalization") == 1
    assert_folded(network(), source)


NAMES = {
    "255-bytes": b"n" * 250 + b".onnx",
    "255-bytes-of-two-each": "\u00e9".encode() * 125 + b".onnx",
    "255-bytes-cut-inside-a-character": b"x" + "\u00e9".encode() * 124 + b"x.onnx",
    "colon": b"C:model.onnx",
    "backslash": b"a\\b.onnx",
    "new-line": b"a\nb.onnx",
    "spaces": b" a b .onnx",
    "not-utf-8": b"caf\xe9.onnx",
    "leading-dash": b"-o.onnx",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_target_of_any_name_has_data_that_loads(name: str, tmp_path: Path) -> None:
    """Locations are text in UTF-8 without separators, and fit: the model is written, verified and read again."""
    source = externalise(network(), tmp_path / "model.onnx")
    target = tmp_path / os.fsdecode(NAMES[name])
    assert bnfold.fold(source, target).verification
    proto = onnx.load_model_from_string(target.read_bytes())
    (location,) = {
        entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"
    }
    assert len(location.encode()) <= 255
    assert location.isprintable()
    assert bnfold.inspect(target).sites == ()
    assert len(list(tmp_path.iterdir())) == 4
    if name not in ("not-utf-8", "backslash"):  # onnx takes no such path
        assert external_names(target) == {"w_folded", "b_folded", "k"}
        assert_folded(network(), target)
    bnfold.fold(source, target, force=True, verify=False)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["255-bytes", "not-utf-8"])
def test_a_model_of_any_name_folds_in_place(name: str, tmp_path: Path) -> None:
    """The model's own name is as long as can be, or no text: in place too."""
    source = externalise(network(), tmp_path / "model.onnx")
    odd = source.rename(tmp_path / os.fsdecode(NAMES[name]))
    bnfold.fold(odd, in_place=True, verify=False)
    odd.rename(source)
    assert_folded(network(), source)
    assert {path.name for path in tmp_path.iterdir()} == files_of(source)


@pytest.mark.parametrize("where", ["model", "data"])
def test_a_private_model_stays_private(where: str, tmp_path: Path) -> None:
    """In place: the new files are readable by nobody who could not read the old ones, the data included."""
    source = externalise(network(), tmp_path / "model.onnx")
    (source if where == "model" else tmp_path / "weights.bin").chmod(0o600)
    bnfold.fold(source, in_place=True)
    (data,) = (path for path in tmp_path.iterdir() if path != source)
    assert data.stat().st_mode & 0o777 == 0o600


def test_a_second_run_after_a_killed_one_works(tmp_path: Path) -> None:
    """Left-over temporary files, and data that was put in its place without its model, hinder nobody."""
    source = externalise(network(), tmp_path / "model.onnx")
    bnfold.fold(source, tmp_path / "out.onnx")
    (tmp_path / "out.onnx").unlink()
    (tmp_path / ".out.onnx.0a1b2c3d.bnfold-tmp").write_bytes(b"half")
    before = listing(tmp_path)
    bnfold.fold(source, tmp_path / "out.onnx")
    assert listing(tmp_path) == before | {"out.onnx": (tmp_path / "out.onnx").read_bytes()}
    assert_folded(network(), tmp_path / "out.onnx")


def test_a_locked_folder_is_waited_for_and_then_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may read a folder may lock it: that must not stop a fold for good."""
    import fcntl

    from bnfold import locking

    monkeypatch.setattr(locking, "PATIENCE", 0.05)
    source = externalise(network(), tmp_path / "model.onnx")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        bnfold.fold(source, in_place=True, verify=False)
    finally:
        os.close(descriptor)
    assert_folded(network(), source)


def test_reading_a_folder_that_is_gone(tmp_path: Path) -> None:
    """The current folder was removed: exit 2 and one line, from a process of its own."""
    room = tmp_path / "room"
    room.mkdir()
    script = (
        "import os, sys, shutil; os.chdir(sys.argv[1]); shutil.rmtree(sys.argv[1]); "
        "from bnfold.cli import main; main(['fold', 'model.onnx'])"
    )
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(Path(bnfold.__path__[0]).parent)}
    done = subprocess.run(
        [sys.executable, "-c", script, room], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bnfold: error: ")
    assert done.stderr.count("\n") == 1
