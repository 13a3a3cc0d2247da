"""External data behind links: refused as it is, followed where the folder is trusted, never written as a link."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import bnfold
from tests.conftest import Cli, ops, random_feeds, run
from tests.test_external import assert_folded, externalise, listing, network, point, unfoldable

pytestmark = pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")


def cached(proto: ModelProto, folder: Path) -> Path:
    """A model as Hugging Face's cache keeps it: snapshots/<rev>/model.onnx and _data link into blobs/."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    externalise(proto, blobs / "model.onnx", file="model.onnx_data")
    for name, digest in (("model.onnx", "5f2c"), ("model.onnx_data", "9e41")):
        (blobs / name).rename(blobs / digest)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    return snapshot / "model.onnx"


def assert_plain(folder: Path) -> None:
    """No file is a link or has a second name."""
    assert not [
        path for path in folder.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
    ]


def test_linked_data_is_refused_and_the_message_says_what_helps(tmp_path: Path, cli: Cli) -> None:
    """By default: exit 2 from both commands, one line with --follow-links in it, and nothing written."""
    source = cached(network(), tmp_path)
    before = listing(tmp_path)
    for command in ("fold", "inspect"):
        code, out, err = cli(command, source)
        assert (code, out) == (2, "")
        assert "symbolic link" in err
        assert "--follow-links" in err
        assert err.count("\n") == 1
    assert listing(tmp_path) == before


@pytest.mark.parametrize("provider", ["cpu", "reference"])
def test_a_model_in_hugging_faces_cache_folds(provider: str, tmp_path: Path, cli: Cli) -> None:
    """With --follow-links: verified, and written as plain files into another folder; the cache is not touched."""
    source = cached(network(), tmp_path / "cache")
    (tmp_path / "out").mkdir()
    before = listing(tmp_path / "cache")
    target = tmp_path / "out" / "model.onnx"
    code, out, err = cli("fold", source, "--follow-links", "-o", target, "--provider", provider)
    assert (code, err) == (0, "")
    assert "verified equal" in out
    assert listing(tmp_path / "cache") == before
    assert_plain(tmp_path / "out")
    assert_folded(network(), target)
    assert cli("inspect", source, "--follow-links")[0] == 0


def test_the_output_beside_the_links_is_plain(tmp_path: Path, cli: Cli) -> None:
    """The default output stands in the snapshot, with data of its own: it loads without any link."""
    source = cached(network(), tmp_path)
    assert cli("fold", source, "--follow-links")[0] == 0
    folded = source.with_name("model.folded.onnx")
    assert not folded.is_symlink()
    assert not folded.with_name("model.folded.onnx.data").is_symlink()
    assert_folded(network(), folded)
    assert cli("inspect", folded)[0] == 0


def test_the_api_follows_links_and_saves_plain_files(tmp_path: Path) -> None:
    """fold(..., follow_links=True) verifies in memory and saves; inspect takes the same option."""
    source = cached(network(), tmp_path / "cache")
    with pytest.raises(bnfold.InvalidModelError, match="--follow-links"):
        bnfold.inspect(source)
    assert bnfold.inspect(source, follow_links=True).sites[0].outcome == "folded"
    result = bnfold.fold(source, follow_links=True)
    assert result.verification
    (tmp_path / "out").mkdir()
    result.save(tmp_path / "out" / "model.onnx")
    assert_plain(tmp_path / "out")
    assert_folded(network(), tmp_path / "out" / "model.onnx")


@pytest.mark.usefixtures("wrong_fold")
@pytest.mark.parametrize("provider", ["cpu", "reference"])
def test_the_verification_is_real(provider: str, tmp_path: Path, cli: Cli) -> None:
    """Through links too, a wrong fold is found: exit 1, nothing written."""
    source = cached(network(), tmp_path)
    before = listing(tmp_path)
    assert cli("fold", source, "--follow-links", "--provider", provider)[0] == 1
    assert listing(tmp_path) == before


def test_data_in_several_far_folders_is_verified(tmp_path: Path) -> None:
    """A plain .onnx whose data files are links into different folders, which onnxruntime itself refuses to load."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = externalise(network(), folder / "model.onnx", file="{}.bin")
    for number, data in enumerate(sorted(folder.glob("*.bin"))):
        away = tmp_path / f"store{number % 2}" / str(number)
        away.mkdir(parents=True)
        data.rename(away / "blob")
        data.symlink_to(away / "blob")
    with pytest.raises(Exception, match="escapes model directory"):
        run(source, random_feeds(network()))
    result = bnfold.fold(source, tmp_path / "out.onnx", follow_links=True)
    assert result.verification
    assert_folded(network(), tmp_path / "out.onnx")


def _linked_folder(folder: Path) -> str:
    (folder.parent / "far").mkdir()
    (folder / "weights.bin").rename(folder.parent / "far" / "weights.bin")
    (folder / "sub").symlink_to(folder.parent / "far")
    return "sub/weights.bin"


def _chain(folder: Path) -> str:
    (folder / "weights.bin").rename(folder.parent / "w")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to(folder.parent / "w")
    return "one"


def _hard(folder: Path) -> str:
    os.link(folder / "weights.bin", folder.parent / "w")
    return "weights.bin"


@pytest.mark.parametrize("prepare", [_linked_folder, _chain, _hard])
def test_every_kind_of_link_is_followed(prepare: Callable[[Path], str], tmp_path: Path) -> None:
    """A linked folder, a link to a link, a hard link: refused by default, and verified when they may be followed."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = externalise(network(), folder / "model.onnx")
    location = prepare(folder)
    relocate(source, location)
    with pytest.raises(bnfold.InvalidModelError, match=r"link; .*--follow-links"):
        bnfold.inspect(source)
    assert bnfold.fold(source, tmp_path / "out.onnx", follow_links=True).verification
    assert_folded(network(), tmp_path / "out.onnx")


def relocate(source: Path, location: str) -> None:
    """Let all external tensors of a file name another location."""
    proto = onnx.load(source, load_external_data=False)
    for held in proto.graph.initializer:
        fields = {entry.key: entry.value for entry in held.external_data}
        point(held, **(fields | {"location": location}))
    source.write_bytes(proto.SerializeToString())


def _loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop"


def _nowhere(folder: Path) -> str:
    (folder / "dangling").symlink_to("absent")
    return "dangling"


def _device(folder: Path) -> str:
    (folder / "zero").symlink_to("/dev/zero")
    return "zero"


def _pipe(folder: Path) -> str:
    os.mkfifo(folder.parent / "pipe")
    (folder / "pipe").symlink_to(folder.parent / "pipe")
    return "pipe"


def _folder(folder: Path) -> str:
    (folder / "up").symlink_to(folder.parent)
    return "up"


def _parent(folder: Path) -> str:
    shutil.copy(folder / "weights.bin", folder.parent / "w")
    return "../w"


def _absolute(folder: Path) -> str:
    return str(folder / "weights.bin")


@pytest.mark.parametrize("prepare", [_loop, _nowhere, _device, _pipe, _folder, _parent, _absolute])
def test_trust_ends_at_plain_files(prepare: Callable[[Path], str], tmp_path: Path, cli: Cli) -> None:
    """Loops, devices, pipes, folders, locations that lead out by themselves: refused with --follow-links too."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = externalise(network(), folder / "model.onnx")
    relocate(source, prepare(folder))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = cli("fold", source, "--follow-links", "--no-verify")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_in_place_over_linked_data(tmp_path: Path, cli: Cli) -> None:
    """A plain .onnx with linked data, in place: the data becomes a plain file, the link and what it names stay."""
    source = cached(network(), tmp_path)
    plain = source.with_name("plain.onnx")
    shutil.copy(source, plain)
    blob = (tmp_path / "blobs" / "9e41").read_bytes()
    code, out, _ = cli("fold", plain, "--follow-links", "--in-place")
    assert code == 0
    assert "no longer used by this model: model.onnx_data" in out
    assert source.with_name("model.onnx_data").is_symlink()
    assert (tmp_path / "blobs" / "9e41").read_bytes() == blob
    assert_folded(network(), plain)


def test_in_place_over_a_linked_model_stays_refused(tmp_path: Path, cli: Cli) -> None:
    """The model itself is a link: exit 2, --follow-links or not, and the message says what to do."""
    source = cached(network(), tmp_path)
    before = listing(tmp_path)
    code, _, err = cli("fold", source, "--follow-links", "--in-place")
    assert code == 2
    assert "symbolic link; give the real path, or another output" in err
    assert listing(tmp_path) == before


def test_nothing_to_fold_copies_what_is_behind_the_links(tmp_path: Path, cli: Cli) -> None:
    """Into another folder: the same bytes, as plain files. Beside the links: refused, as no runtime would load it."""
    source = cached(unfoldable(), tmp_path / "cache")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.onnx"
    assert cli("fold", source, "--follow-links", "-o", target)[0] == 0
    assert_plain(tmp_path / "out")
    assert target.read_bytes() == source.read_bytes()
    assert np.array_equal(
        run(target, random_feeds(unfoldable()))[0], run(unfoldable(), random_feeds(unfoldable()))[0]
    )
    before = listing(tmp_path)
    code, _, err = cli("fold", source, "--follow-links")
    assert code == 2
    assert "choose another folder" in err
    assert listing(tmp_path) == before
    assert ops(onnx.load(target)) == ops(unfoldable())
