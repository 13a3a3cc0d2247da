"""External data: read from wherever a model may keep it, written safely, and never read from outside its folder."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import OutputError, UnsafePathError
from tests.conftest import Cli, batchnorm_parameters, conv_bn, initializer, model, ops, random_feeds, run, tensor

PARAMETERS = ("gamma", "beta", "mean", "var")


def network() -> ModelProto:
    """x -> Conv(w, b) -> BatchNormalization -> PRelu(k) -> y: k is a constant that no fold touches."""
    proto = conv_bn(bias=True)
    proto.graph.node[1].output[0] = "z"
    proto.graph.node.append(helper.make_node("PRelu", ["z", "k"], ["y"], name="prelu"))
    proto.graph.initializer.append(tensor("k", np.arange(1, 5).reshape(1, 4, 1, 1)))
    return shaped(proto, 2, 4, 7, 7)


def shaped(proto: ModelProto, *dims: int) -> ModelProto:
    """The model with the shape of its output declared, which onnx's checker demands."""
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(proto.graph.output[0].name, TensorProto.FLOAT, dims))
    return proto


def unfoldable() -> ModelProto:
    """x -> Relu -> BatchNormalization -> y: nothing to fold, but constants to carry along."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("BatchNormalization", ["r", *PARAMETERS], ["y"], name="bn"),
    ]
    return model(nodes, batchnorm_parameters(3))


def point(held: TensorProto, **fields: Any) -> None:
    """Make a tensor external with exactly these fields."""
    held.ClearField("raw_data")
    del held.external_data[:]
    held.data_location = TensorProto.EXTERNAL
    held.external_data.extend(StringStringEntryProto(key=k, value=str(v)) for k, v in fields.items())


def externalise(
    proto: ModelProto, path: Path, names: tuple[str, ...] | None = None, *, file: str = "weights.bin",
    align: int = 1, fields: tuple[str, ...] = ("location", "offset", "length"),
) -> Path:  # fmt: skip
    """Write a model with initializers (`names`, or all) in external data; "{}" in `file` is the tensor's name."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    contents: dict[str, bytes] = {}
    for held in copy.graph.initializer:
        if names is not None and held.name not in names:
            continue
        location, data = file.format(held.name), held.raw_data
        content = contents.get(location, b"\xaa" * (align > 1))
        content += bytes(-len(content) % align)
        contents[location] = content + data
        every = {"location": location, "offset": len(content), "length": len(data)}
        point(held, **{key: every[key] for key in fields})
    for location, content in contents.items():
        (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / location).write_bytes(content)
    path.write_bytes(copy.SerializeToString())
    return path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder by relative name: the bytes of files, None for the rest."""
    entries = sorted(folder.rglob("*"))
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() and not entry.is_symlink() else None
        for entry in entries
    }


def files_of(path: Path) -> set[str]:
    """A model's own name and those of its data files."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    locations = {entry.value for held in tensors for entry in held.external_data if entry.key == "location"}
    return {path.name, *locations}


def external_names(path: Path) -> set[str]:
    """The initializers of a file that are stored in external data."""
    proto = onnx.load(path, load_external_data=False)
    return {t.name for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL}


def assert_folded(original: ModelProto, path: Path) -> None:
    """The file has no BatchNormalization, passes onnx's checker, and gives what the original, inline, gives."""
    onnx.checker.check_model(path, full_check=True)
    assert "BatchNormalization" not in ops(onnx.load(path))
    feeds = random_feeds(original)
    for first, second in zip(run(original, feeds), run(path, feeds), strict=True):
        assert np.abs(first - second).max() <= 2e-6 * np.abs(first).max()


LAYOUTS: dict[str, dict[str, Any]] = {
    "one-file": {},
    "many-files": {"file": "{}.bin"},
    "pages": {"align": 4096},
    "odd-offsets": {"align": 7},
    "no-length": {"align": 64, "fields": ("location", "offset")},
    "no-offset": {"file": "{}.bin", "fields": ("location", "length")},
    "location-alone": {"file": "{}.bin", "fields": ("location",)},
    "subfolder": {"file": "data/deep/{}.bin"},
    "dot-slash": {"file": "./weights.bin"},
    "weight-alone": {"names": ("w",)},
    "bias-alone": {"names": ("b",)},
    "parameters-alone": {"names": PARAMETERS},
    "untouched-alone": {"names": ("k",)},
    "weight-and-untouched": {"names": ("w", "k")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["same", "other", "in-place"])
def test_every_layout_folds_to_every_place(layout: str, place: str, tmp_path: Path, cli: Cli) -> None:
    """Wherever the numbers lie, the fold is verified, loads in onnx and onnxruntime, and stays external."""
    source = externalise(network(), tmp_path / "model.onnx", **LAYOUTS[layout])
    before = listing(tmp_path)
    was_external = external_names(source)
    target = {"same": tmp_path / "out.onnx", "other": tmp_path / "elsewhere" / "out.onnx", "in-place": source}[place]
    target.parent.mkdir(exist_ok=True)
    args = ["--in-place"] if place == "in-place" else ["-o", target]
    code, _, err = cli("fold", source, *args)
    assert (code, err) == (0, "")
    assert_folded(network(), target)
    renamed = {"w": "w_folded", "b": "b_folded", "k": "k"}
    assert external_names(target) == {renamed[name] for name in was_external if name in renamed}
    after = listing(tmp_path)
    assert not [name for name in after if "tmp" in name]
    if place == "in-place":
        assert [name for name, data in after.items() if data is not None] == sorted(files_of(source))
    else:
        assert before.items() <= after.items()


def test_the_output_needs_nothing_of_the_input(tmp_path: Path) -> None:
    """Folded into another folder, the model stands alone: the input's folder may go."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = externalise(network(), tmp_path / "in" / "model.onnx", file="{}.bin")
    bnfold.fold(source, tmp_path / "out" / "model.onnx")
    for file in (tmp_path / "in").iterdir():
        file.unlink()
    assert_folded(network(), tmp_path / "out" / "model.onnx")
    assert sorted(listing(tmp_path / "out")) == ["model.onnx", "model.onnx.data"]


def test_all_new_data_lies_in_one_aligned_file(tmp_path: Path) -> None:
    """One file beside the model, named after it; every tensor in it starts on a page and none overlap."""
    source = externalise(network(), tmp_path / "model.onnx", file="{}.bin")
    bnfold.fold(source, tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    fields = [{entry.key: entry.value for entry in t.external_data} for t in proto.graph.initializer]
    assert {entry["location"] for entry in fields} == {"out.onnx.data"}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in fields)
    ranges = sorted((int(entry["offset"]), int(entry["length"])) for entry in fields)
    assert all(a + b <= c for (a, b), (c, _) in itertools.pairwise(ranges))
    assert ranges[-1][0] + ranges[-1][1] == (tmp_path / "out.onnx.data").stat().st_size


def test_tensors_that_no_fold_touches_keep_their_bytes(tmp_path: Path) -> None:
    """NaN payloads, signed zeros and subnormals of an unchanged external tensor come through bit for bit."""
    bits = np.array([0x7FC12345, 0x80000000, 0x00000001, 0xFF812345], np.uint32)
    proto = network()
    proto.graph.initializer[-1].raw_data = bits.tobytes()
    source = externalise(proto, tmp_path / "model.onnx", ("w", "k"))
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    kept = next(t for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.name == "k")
    assert kept.raw_data == bits.tobytes()


def test_types_that_bnfold_does_not_compute_with_are_carried(tmp_path: Path) -> None:
    """Unchanged external tensors of int4, uint8, float8 and complex type: the same bytes, as none is read."""
    kinds = {"i4": TensorProto.INT4, "u1": TensorProto.UINT8, "f8": TensorProto.FLOAT8E4M3FN}
    kinds |= {"c8": TensorProto.COMPLEX64}
    proto = network()
    lengths = {"i4": 3, "u1": 5, "f8": 5, "c8": 40}
    for name, kind in kinds.items():
        raw = bytes(range(1, lengths[name] + 1))
        proto.graph.initializer.append(TensorProto(name=name, data_type=kind, dims=[5], raw_data=raw))
    source = externalise(proto, tmp_path / "model.onnx", align=16)
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    held = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert {name: held[name].raw_data for name in kinds} == {
        name: bytes(range(1, lengths[name] + 1)) for name in kinds
    }


def test_shared_bytes_stay_right_for_every_tensor(tmp_path: Path) -> None:
    """Two tensors that point at one stretch of a file: one is folded, the other keeps its numbers."""
    proto = shaped(conv_bn((3, 3, 1, 1)), 2, 3, 9, 9)
    proto.graph.output[0].name = "z"
    proto.graph.node.append(helper.make_node("Conv", ["y", "w2"], ["z"], name="second"))
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "w2"
    source = externalise(proto, tmp_path / "model.onnx", ("w", "w2"))
    held = onnx.load(source, load_external_data=False)
    for entry in held.graph.initializer:
        if entry.name == "w2":
            point(entry, location="weights.bin", offset=0, length=36)
    source.write_bytes(held.SerializeToString())
    bnfold.fold(source, tmp_path / "out.onnx")
    assert_folded(proto, tmp_path / "out.onnx")
    assert np.array_equal(initializer(onnx.load(tmp_path / "out.onnx"), "w2"), initializer(proto, "w2"))


# Again and again


def test_folding_in_place_twice_changes_nothing_the_second_time(tmp_path: Path, cli: Cli) -> None:
    """The second time there is nothing to fold: every byte and every time stamp in the folder stays."""
    source = externalise(network(), tmp_path / "model.onnx")
    assert cli("fold", source, "--in-place")[0] == 0
    first = listing(tmp_path)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert cli("fold", source, "--in-place")[0] == 0
    assert listing(tmp_path) == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times


@pytest.mark.parametrize("name", ["model.onnx.data", "weights.bin"])
def test_folding_in_place_leaves_no_old_data(name: str, tmp_path: Path) -> None:
    """One data file before, one after: the old one goes, whatever its name, as the report says; it does not grow."""
    proto = shaped(conv_bn((32, 16, 3, 3), x=(1, 16, 8, 8)), 1, 32, 6, 6)
    source = externalise(proto, tmp_path / "model.onnx", file=name, align=4096)
    old = (tmp_path / name).stat().st_size
    report = bnfold.fold(source, in_place=True).report
    assert (report.removed, report.superseded) == ((name,), ())
    (new,) = (file for file in tmp_path.iterdir() if file != source)
    assert new.name != name
    assert new.stat().st_size <= old
    assert_folded(proto, source)


def test_forcing_the_same_output_again_does_not_grow(tmp_path: Path, cli: Cli) -> None:
    """The same fold to the same place three times: the folder is the same after each, byte for byte."""
    source = externalise(network(), tmp_path / "model.onnx", file="{}.bin")
    listings = []
    for _ in range(3):
        assert cli("fold", source, "-o", tmp_path / "out.onnx", "--force", "-q") == (0, "", "")
        listings.append(listing(tmp_path))
    assert listings[0] == listings[1] == listings[2]


def test_the_report_counts_reused_data_too(tmp_path: Path) -> None:
    """The size after is that of the model and its data, also where the same data was there already."""
    source = externalise(network(), tmp_path / "model.onnx")
    sizes = []
    for _ in range(2):
        result = bnfold.fold(source, tmp_path / "out.onnx", force=True)
        assert result.report.after is not None
        sizes.append(result.report.after.bytes)
    expected = sum((tmp_path / name).stat().st_size for name in ("out.onnx", "out.onnx.data"))
    assert sizes == [expected, expected]


def test_new_data_never_replaces_a_file(tmp_path: Path) -> None:
    """A file of other content that has the name of the new data stays; the data takes another name."""
    source = externalise(network(), tmp_path / "model.onnx")
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's")
    bnfold.fold(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == b"somebody's"
    assert_folded(network(), tmp_path / "out.onnx")


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_new_data_never_goes_through_a_link(tmp_path: Path) -> None:
    """A symbolic link, dangling or not, that has the name of the new data: neither it nor its target is touched."""
    source = externalise(network(), tmp_path / "model.onnx")
    (tmp_path / "out.onnx.data").symlink_to(tmp_path / "target")
    bnfold.fold(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").is_symlink()
    assert not (tmp_path / "target").exists()
    assert_folded(network(), tmp_path / "out.onnx")


# Nothing to fold


@pytest.mark.parametrize("layout", ["one-file", "many-files", "subfolder"])
def test_an_unchanged_model_is_copied_with_its_data(layout: str, tmp_path: Path, cli: Cli) -> None:
    """Nothing to fold, another folder: .onnx and data files are copies, byte for byte, under their own names."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = externalise(unfoldable(), tmp_path / "in" / "model.onnx", **LAYOUTS[layout])
    assert cli("fold", source, "-o", tmp_path / "out" / "model.onnx")[0] == 0
    assert listing(tmp_path / "out") == listing(tmp_path / "in")
    feeds = random_feeds(unfoldable())
    assert np.array_equal(run(tmp_path / "out" / "model.onnx", feeds)[0], run(unfoldable(), feeds)[0])


def test_an_unchanged_model_in_the_same_folder_shares_its_data(tmp_path: Path, cli: Cli) -> None:
    """Nothing to fold, the same folder: one new .onnx that reads the same data file."""
    source = externalise(unfoldable(), tmp_path / "model.onnx")
    before = listing(tmp_path)
    assert cli("fold", source)[0] == 0
    assert listing(tmp_path) == before | {"model.folded.onnx": source.read_bytes()}
    assert len(run(tmp_path / "model.folded.onnx", random_feeds(unfoldable()))) == 1


def test_an_unchanged_copy_never_replaces_data(tmp_path: Path, cli: Cli) -> None:
    """Where a data file of that name and other content lies, the copy is refused, with --force too, and no trace."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "z.bin").write_bytes(b"somebody's")
    proto = unfoldable()
    source = externalise(proto, tmp_path / "model.onnx", ("gamma",), file="deep/a.bin")
    held = onnx.load(source, load_external_data=False)
    beta = next(t for t in held.graph.initializer if t.name == "beta")
    (tmp_path / "z.bin").write_bytes(beta.raw_data)
    point(beta, location="z.bin")
    source.write_bytes(held.SerializeToString())
    before = listing(tmp_path)
    code, _, err = cli("fold", source, "-o", tmp_path / "out" / "model.onnx", "--force")
    assert code == 2
    assert "z.bin" in err
    assert err.count("\n") == 1
    assert listing(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["z.bin"]


def test_an_unchanged_copy_takes_data_that_is_there_already(tmp_path: Path, cli: Cli) -> None:
    """The same data in the target folder is used as it is; a second copy with --force changes nothing."""
    (tmp_path / "out").mkdir()
    source = externalise(unfoldable(), tmp_path / "model.onnx")
    for _ in range(2):
        assert cli("fold", source, "-o", tmp_path / "out" / "model.onnx", "--force")[0] == 0
        assert listing(tmp_path / "out") == {
            "model.onnx": source.read_bytes(),
            "weights.bin": (tmp_path / "weights.bin").read_bytes(),
        }


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
@pytest.mark.parametrize("target", ["in/weights.bin", "absent.bin"])
def test_an_unchanged_copy_never_goes_through_a_link(target: str, tmp_path: Path, cli: Cli) -> None:
    """A link, dangling or not, under the name of a data file: refused, as bnfold would not read the copy again."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = externalise(unfoldable(), tmp_path / "in" / "model.onnx")
    (tmp_path / "out" / "weights.bin").symlink_to(tmp_path / target)
    before = listing(tmp_path)
    code, _, err = cli("fold", source, "-o", tmp_path / "out" / "model.onnx")
    assert code == 2
    assert "weights.bin" in err
    assert (tmp_path / "out" / "weights.bin").is_symlink()
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="hard links are set up the POSIX way")
def test_a_hard_linked_copy_of_the_new_data_is_not_reused(tmp_path: Path) -> None:
    """After a snapshot by `cp -al` the old output's data has two names: a new fold must still load afterwards."""
    source = externalise(network(), tmp_path / "model.onnx")
    bnfold.fold(source, tmp_path / "out.onnx")
    os.link(tmp_path / "out.onnx.data", tmp_path / "snapshot.data")
    assert bnfold.fold(source, tmp_path / "out.onnx", force=True).verification
    assert bnfold.inspect(tmp_path / "out.onnx").sites == ()
    assert_folded(network(), tmp_path / "out.onnx")


@pytest.mark.parametrize("place", ["in", "out"])
@pytest.mark.parametrize("proto", [pytest.param(network(), id="folds"), pytest.param(unfoldable(), id="unchanged")])
def test_an_output_named_like_the_inputs_data_breaks_nothing(
    proto: ModelProto, place: str, tmp_path: Path, cli: Cli
) -> None:
    """-o with the name of the input's data file: the input stays readable, and a success gives a sound model."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = externalise(proto, tmp_path / "in" / "model.onnx")
    before = listing(tmp_path / "in")
    code, _, err = cli("fold", source, "-o", tmp_path / place / "weights.bin", "--force")
    assert listing(tmp_path / "in").items() >= before.items()
    if code == 0:
        feeds = random_feeds(proto)
        assert np.allclose(
            run(tmp_path / place / "weights.bin", feeds)[0], run(proto, feeds)[0], rtol=1e-5, atol=1e-5
        )
    else:
        assert code == 2
        assert "weights.bin" in err
        assert listing(tmp_path / "out") == {}


# Locations that lead elsewhere


def _link(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")


def _linked_folder(folder: Path) -> None:
    (folder / "linked").symlink_to(folder.parent)


def _inner_link(folder: Path) -> None:
    (folder / "inner.bin").symlink_to("weights.bin")


def _hard_link(folder: Path) -> None:
    os.link(folder.parent / "secret.bin", folder / "hard.bin")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bin")


def _folder(folder: Path) -> None:
    (folder / "folder.bin").mkdir()


def _nothing(folder: Path) -> None:
    assert folder.is_dir()


UNSAFE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "parent": ("../secret.bin", _nothing),
    "parent-inside": ("sub/../../secret.bin", _nothing),
    "parent-and-back": ("../model/weights.bin", _nothing),
    "parent-alone": ("..", _nothing),
    "absolute": ("{parent}/secret.bin", _nothing),
    "absolute-twice": ("//etc/passwd", _nothing),
    "device": ("/dev/zero", _nothing),
    "windows-drive": ("C:\\secret.bin", _nothing),
    "windows-drive-slash": ("C:/secret.bin", _nothing),
    "windows-drive-relative": ("C:secret.bin", _nothing),
    "windows-parent": ("..\\secret.bin", _nothing),
    "windows-parent-inside": ("sub\\..\\..\\secret.bin", _nothing),
    "windows-root": ("\\secret.bin", _nothing),
    "windows-share": ("\\\\server\\share\\secret.bin", _nothing),
    "symbolic-link": ("link.bin", _link),
    "symbolic-link-inside": ("inner.bin", _inner_link),
    "symbolic-link-to-folder": ("linked/secret.bin", _linked_folder),
    "hard-link": ("hard.bin", _hard_link),
    "pipe": ("pipe.bin", _pipe),
    "folder": ("folder.bin", _folder),
}


@pytest.mark.skipif(os.name == "nt", reason="symbolic links, hard links and pipes are set up the POSIX way")
@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_locations_are_refused(case: str, tmp_path: Path, cli: Cli) -> None:
    """Out of the folder, through a link, or no plain file: exit 2, one line with the tensor, nothing written."""
    location, prepare = UNSAFE[case]
    folder = tmp_path / "model"
    folder.mkdir()
    source = externalise(network(), folder / "model.onnx")
    proto = onnx.load(source, load_external_data=False)
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    prepare(folder)
    point(proto.graph.initializer[0], location=location.format(parent=tmp_path))
    source.write_bytes(proto.SerializeToString())
    names = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafePathError, match=r"model\.onnx: .*tensor 'w'"):
        bnfold.fold(source, folder / "out.onnx")
    for command in (("fold", source), ("inspect", source)):
        code, out, err = cli(*command)
        assert (code, out) == (2, "")
        assert "tensor 'w'" in err
        assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == names


def _if_with_constant(held: TensorProto) -> ModelProto:
    """x -> If(c) with `held` as a Constant inside both branches -> y."""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value=held)],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    return model(nodes, [tensor("c", True, np.bool_)])  # noqa: FBT003 - the value itself


@pytest.mark.parametrize("where", ["unused", "sparse", "attribute", "nested", "function"])
def test_unsafe_locations_are_refused_wherever_they_hide(where: str, tmp_path: Path, cli: Cli) -> None:
    """In an initializer that nothing reads, a sparse one, a Constant node, a branch of an If, a local function."""
    held = tensor("hidden", [1.0, 2.0])
    point(held, location="../secret.bin", offset=0, length=8)
    proto = network()
    if where == "unused":
        proto.graph.initializer.append(held)
    elif where == "sparse":
        indices = tensor("indices", [0, 1], np.int64)
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(held, indices, [9]))
    elif where == "attribute":
        proto.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=held))
    elif where == "nested":
        proto = _if_with_constant(held)
    else:
        constant = helper.make_node("Constant", [], ["out"], value=held)
        imports = [helper.make_opsetid("", 17)]
        proto.functions.append(helper.make_function("local", "F", [], ["out"], [constant], imports))
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    code, _, err = cli("fold", path)
    assert code == 2
    assert "'hidden'" in err
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


# Fields that make no sense


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "missing-file": ({"location": "absent.bin"}, "absent.bin"),
    "missing-folder": ({"location": "no/such/absent.bin"}, "absent.bin"),
    "file-as-folder": ({"location": "weights.bin/inner.bin"}, "inner.bin"),
    "no-location": ({}, "location is empty"),
    "empty-location": ({"location": ""}, "location is empty"),
    "dot": ({"location": "."}, "location is empty"),
    "nul": ({"location": "weights\0.bin"}, "not a file name"),
    "too-long": ({"location": "n" * 300}, "too long"),
    "short-file": ({"location": "short.bin"}, "too short"),
    "empty-file": ({"location": "empty.bin", "offset": 0, "length": 432}, "too short"),
    "short-by-offset": ({"location": "exact.bin", "offset": 1, "length": 432}, "too short"),
    "offset-beyond": ({"location": "exact.bin", "offset": 10**6, "length": 432}, "too short"),
    "offset-huge": ({"location": "exact.bin", "offset": 2**63, "length": 432}, "too short"),
    "offset-words": ({"location": "exact.bin", "offset": "none"}, "'none' is not a number"),
    "offset-empty": ({"location": "exact.bin", "offset": ""}, "not a number"),
    "offset-negative": ({"location": "exact.bin", "offset": -1}, "'-1' is not a number"),
    "offset-plus": ({"location": "exact.bin", "offset": "+0"}, "not a number"),
    "offset-float": ({"location": "exact.bin", "offset": "0.0"}, "not a number"),
    "offset-hex": ({"location": "exact.bin", "offset": "0x0"}, "not a number"),
    "offset-space": ({"location": "exact.bin", "offset": " 0"}, "not a number"),
    "offset-superscript": ({"location": "exact.bin", "offset": "\u00b2"}, "not a number"),
    "offset-other-digits": ({"location": "exact.bin", "offset": "\u0660"}, "not a number"),
    "offset-endless": ({"location": "exact.bin", "offset": "9" * 5000}, "not a number"),
    "length-words": ({"location": "exact.bin", "length": "all"}, "'all' is not a number"),
    "length-negative": ({"location": "exact.bin", "length": -432}, "not a number"),
    "length-short": ({"location": "exact.bin", "length": 428}, "needs 432 bytes"),
    "length-long": ({"location": "long.bin", "length": 436}, "needs 432 bytes"),
    "length-zero": ({"location": "exact.bin", "length": 0}, "needs 432 bytes"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_make_no_sense_are_refused(case: str, tmp_path: Path, cli: Cli) -> None:
    """Missing or short files, offsets and lengths that are no numbers or do not fit: one line, exit 2."""
    fields, word = FIELDS[case]
    for name, size in (("short.bin", 431), ("empty.bin", 0), ("exact.bin", 432), ("long.bin", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    source = externalise(network(), tmp_path / "model.onnx", ("k",))
    proto = onnx.load(source, load_external_data=False)
    point(proto.graph.initializer[0], **fields)
    source.write_bytes(proto.SerializeToString())
    before = listing(tmp_path)
    with pytest.raises(bnfold.InvalidModelError) as caught:
        bnfold.fold(source, tmp_path / "out.onnx")
    message = str(caught.value)
    assert all(part in message for part in ("model.onnx: ", "'w'", word))
    assert message.isprintable()
    assert cli("fold", source) == (2, "", f"bnfold: error: {message}\n")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("dims", [[4, -3, 3, 3], [4, -3, -3, 3], [-4, -3, -3, -3], [2**40, 2**40]])
def test_dims_that_make_no_sense_are_refused(dims: list[int], tmp_path: Path, cli: Cli) -> None:
    """Negative dimensions, also where their product is positive, and more elements than any file holds."""
    source = externalise(network(), tmp_path / "model.onnx", fields=("location", "offset"))
    proto = onnx.load(source, load_external_data=False)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    source.write_bytes(proto.SerializeToString())
    code, _, err = cli("fold", source)
    assert code == 2
    assert "tensor 'w'" in err
    assert err.count("\n") == 1


def test_an_external_text_tensor_is_refused_clearly(tmp_path: Path, cli: Cli) -> None:
    """Strings cannot be external (ONNX ExternalData.md): a sentence that says what is wrong, not `None bytes`."""
    source = externalise(network(), tmp_path / "model.onnx")
    proto = onnx.load(source, load_external_data=False)
    text = proto.graph.initializer.add()
    text.CopyFrom(TensorProto(name="text", data_type=TensorProto.STRING, dims=[2]))
    point(text, location="weights.bin")
    source.write_bytes(proto.SerializeToString())
    code, _, err = cli("fold", source)
    assert code == 2
    assert "'text'" in err
    assert "None" not in err


def test_a_zero_size_tensor_may_be_external(tmp_path: Path) -> None:
    """A tensor without elements at the end of a file needs no bytes and hinders nothing."""
    proto = network()
    proto.graph.initializer.append(tensor("nothing", np.zeros((0, 3))))
    source = externalise(proto, tmp_path / "model.onnx")
    bnfold.fold(source, tmp_path / "out.onnx")
    assert_folded(network(), tmp_path / "out.onnx")


# In memory


def test_a_proto_in_memory_with_external_data_is_refused(tmp_path: Path) -> None:
    """Its folder is not known: the message says to give the path."""
    source = externalise(network(), tmp_path / "model.onnx")
    proto = onnx.load(source, load_external_data=False)
    with pytest.raises(bnfold.InvalidModelError, match="give its path") as caught:
        bnfold.fold(proto)
    assert "\n" not in str(caught.value)
    with pytest.raises(bnfold.InvalidModelError, match="give its path"):
        bnfold.inspect(proto)


def test_a_proto_whose_data_was_loaded_folds(tmp_path: Path) -> None:
    """onnx.load reads external data in by default: such a proto folds like any other."""
    source = externalise(network(), tmp_path / "model.onnx")
    result = bnfold.fold(onnx.load(source))
    result.save(tmp_path / "out.onnx")
    assert_folded(network(), tmp_path / "out.onnx")


def test_nothing_is_written_without_an_output(tmp_path: Path) -> None:
    """fold(path) alone verifies, external data included, and leaves the folder as it was."""
    source = externalise(network(), tmp_path / "model.onnx", file="{}.bin")
    before = listing(tmp_path)
    assert bnfold.fold(source).verification
    assert bnfold.inspect(source).sites[0].outcome == "folded"
    assert listing(tmp_path) == before


@pytest.mark.parametrize("layout", ["one-file", "many-files", "weight-alone", "parameters-alone", "untouched-alone"])
def test_a_result_can_be_saved_twice_to_two_places(layout: str, tmp_path: Path) -> None:
    """Each file that `save` writes stands alone, in the input's folder or another one; both hold the same."""
    for name in ("in", "one", "two"):
        (tmp_path / name).mkdir()
    source = externalise(network(), tmp_path / "in" / "model.onnx", **LAYOUTS[layout])
    before = listing(tmp_path / "in")
    result = bnfold.fold(source)
    result.save(tmp_path / "one" / "out.onnx")
    result.save(tmp_path / "two" / "out.onnx")
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    assert listing(tmp_path / "in") == before
    with pytest.raises(OutputError, match="exists"):
        result.save(tmp_path / "one" / "out.onnx")
    result.save(tmp_path / "one" / "out.onnx", force=True)
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    assert_folded(network(), tmp_path / "one" / "out.onnx")


def test_a_result_can_be_saved_after_it_was_written(tmp_path: Path) -> None:
    """fold(path, output) and fold(path, in_place=True) give results that can be saved once more."""
    source = externalise(network(), tmp_path / "model.onnx")
    result = bnfold.fold(source, tmp_path / "out.onnx")
    result.save(tmp_path / "again.onnx")
    assert_folded(network(), tmp_path / "again.onnx")
    result = bnfold.fold(source, in_place=True)
    result.save(tmp_path / "third.onnx")
    assert_folded(network(), tmp_path / "third.onnx")
    assert_folded(network(), source)


def test_the_model_of_a_result_reads_beside_the_original(tmp_path: Path) -> None:
    """`.model` holds what changed inline; the rest still points at the input's files, and loads beside them."""
    source = externalise(network(), tmp_path / "model.onnx")
    result = bnfold.fold(source)
    held = {t.name: t.data_location for t in result.model.graph.initializer}
    assert held == {"w_folded": TensorProto.DEFAULT, "b_folded": TensorProto.DEFAULT, "k": TensorProto.EXTERNAL}
    (tmp_path / "out.onnx").write_bytes(result.model.SerializeToString())
    assert_folded(network(), tmp_path / "out.onnx")


def test_an_unfolded_result_saves_a_copy(tmp_path: Path) -> None:
    """Nothing folded: `save` copies the file and its data."""
    (tmp_path / "out").mkdir()
    source = externalise(unfoldable(), tmp_path / "model.onnx")
    bnfold.fold(source).save(tmp_path / "out" / "model.onnx")
    assert listing(tmp_path / "out") == {
        name: (tmp_path / name).read_bytes() for name in ("model.onnx", "weights.bin")
    }


def test_a_weight_in_bfloat16_stays_external(tmp_path: Path) -> None:
    """External data of a type that numpy does not have itself is read, folded, rounded and written as such."""
    values = np.arange(1, 13, dtype=np.float32).reshape(4, 3, 1, 1)
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, values.shape, values.ravel())
    parameters = [
        helper.make_tensor(name, TensorProto.BFLOAT16, [4], numbers)
        for name, numbers in (("gamma", [2.0] * 4), ("beta", [1.0] * 4), ("mean", [0.0] * 4), ("var", [1.0] * 4))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", *PARAMETERS], ["y"], name="bn", epsilon=0.0),
    ]
    proto = model(nodes, [weight, *parameters], elem_type=TensorProto.BFLOAT16, opset=22, ir_version=10)
    proto.graph.initializer[0].raw_data = numpy_helper.to_array(weight).tobytes()
    proto.graph.initializer[0].ClearField("int32_data")
    source = externalise(proto, tmp_path / "model.onnx", ("w",))
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    assert external_names(tmp_path / "out.onnx") == {"w_folded"}
    folded = initializer(onnx.load(tmp_path / "out.onnx"), "w_folded")
    assert np.array_equal(folded.astype(np.float32), 2 * values)
