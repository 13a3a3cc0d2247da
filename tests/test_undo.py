"""Undo: `unfold(fold(m)) == m`, byte for byte and file by file, at the price of what was replaced."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.document import Document
from bnfold.errors import OutputError, UndoError, UsageError
from bnfold.undo.form import varint
from bnfold.undo.make import undo_file
from tests.conftest import MODELS, Cli, conv_bn, tensor
from tests.random_graphs import random_model, random_options
from tests.test_external import LAYOUTS, external_names, externalise, network, point
from tests.test_output import listing, put, unfoldable

A_LITTLE = 4096  # bytes


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability is not what these are about, and there are hundreds of files."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def folded(source: Path, target: Path, **options: Any) -> Path:
    """Fold without verification; returns the undo file."""
    undo = target.parent / "undo"
    bnfold.fold(source, target, verify=False, undo_file=undo, **options)
    return undo


def roundtrip(source: Path, folder: Path, **options: Any) -> int:
    """Fold and unfold in `folder`; the bytes must be the same. Returns the size of the undo file."""
    target = folder / "folded.onnx"
    undo = folded(source, target, **options)
    restored = bnfold.unfold(target, undo, folder / "restored.onnx")
    assert restored.path.read_bytes() == source.read_bytes()
    assert restored.bytes == sum(path.stat().st_size for path in (restored.path, *restored.data))
    return undo.stat().st_size


def lost_bytes(before: ModelProto, after: ModelProto) -> int:
    """What a fold took out: tensors that are no more as they were, and nodes, which deflate to a third at least."""
    tensors = {t.SerializeToString() for t in after.graph.initializer}
    nodes = {node.SerializeToString() for node in after.graph.node}
    gone = sum(t.ByteSize() for t in before.graph.initializer if t.SerializeToString() not in tensors)
    return gone + sum(n.ByteSize() for n in before.graph.node if n.SerializeToString() not in nodes) // 3


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_model_comes_back(path: Path, tmp_path: Path) -> None:
    """Byte for byte; the undo file has what was lost and a little, next to nothing where nothing folds."""
    size = roundtrip(path, tmp_path)
    before, after = onnx.load(path), onnx.load(tmp_path / "folded.onnx")
    assert size <= lost_bytes(before, after) + A_LITTLE
    if before == after:
        assert size < 500


def test_random_graphs_come_back(tmp_path: Path) -> None:
    """Forty random models with random options, with provenance and without, some at IR 3."""
    count, versions = 0, set()
    for index in range(40):
        rng = np.random.default_rng([33, index])
        proto = random_model(rng).proto
        versions.add(proto.ir_version)
        source = put(proto, tmp_path / "m.onnx")
        result = bnfold.fold(source, tmp_path / "folded.onnx", verify=False, force=True, undo_file=tmp_path / "undo",
                             provenance=index % 2 == 0, **random_options(rng))  # fmt: skip
        count += bool(result.folded)
        bnfold.unfold(tmp_path / "folded.onnx", tmp_path / "undo", tmp_path / "back.onnx", force=True)
        assert (tmp_path / "back.onnx").read_bytes() == source.read_bytes(), index
    assert count > 20
    assert 3 in versions


@pytest.mark.parametrize("ir_version", [3, 4, 8, 10, onnx.IR_VERSION])
def test_every_ir_version_comes_back(ir_version: int, tmp_path: Path) -> None:
    """Whatever form the provenance has there."""
    proto = conv_bn(ir_version=ir_version, opset=8, bias=True)
    if ir_version < 4:
        proto.graph.input.extend(helper.make_tensor_value_info(t.name, 1, t.dims) for t in proto.graph.initializer)
    roundtrip(put(proto, tmp_path / "m.onnx"), tmp_path)


# External data


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["same", "other", "in-place"])
def test_data_files_come_back(layout: str, place: str, tmp_path: Path) -> None:
    """Every file of the original, under its name, whatever the layout: out of the folded files and the undo file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "back").mkdir()
    source = externalise(network(), tmp_path / "in" / "model.onnx", **LAYOUTS[layout])
    original = listing(source.parent)
    target = {"same": tmp_path / "in" / "o.onnx", "other": tmp_path / "o.onnx", "in-place": source}[place]
    undo = tmp_path / "undo"
    options: dict[str, Any] = {"in_place": True} if place == "in-place" else {"output": target}
    assert bnfold.fold(source, verify=False, undo_file=undo, **options).folded
    restored = bnfold.unfold(target, undo, tmp_path / "back" / "model.onnx")
    assert listing(tmp_path / "back") == original
    assert {path.relative_to(tmp_path / "back").as_posix() for path in restored.data} | {"model.onnx"} == {
        name for name, data in original.items() if data is not None
    }


@pytest.mark.parametrize("external", [False, True])
def test_in_place_and_back_in_place(external: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Folded and unfolded in place, with the old data file there or gone: all is as it was."""
    source = put(conv_bn(bias=True), tmp_path / "net.onnx", external=external)
    before = listing(tmp_path)
    bnfold.fold(source, in_place=True, verify=False, undo_file=tmp_path / "undo")
    for path in tmp_path.glob("weights.bin"):
        path.unlink()
    restored = bnfold.unfold(source, tmp_path / "undo", in_place=True)
    assert before.items() <= listing(tmp_path).items()
    assert [path.name for path in restored.superseded] == (["net.onnx.data"] if external else [])
    assert set(listing(tmp_path)) - set(before) == {"undo", *(path.name for path in restored.superseded)}


def test_data_that_is_there_is_kept(tmp_path: Path) -> None:
    """The data file beside the original is not written again where it has the bytes, and never over others."""
    source = put(conv_bn(), tmp_path / "net.onnx", external=True)
    undo = folded(source, tmp_path / "o.onnx")
    data = tmp_path / "weights.bin"
    stamp = data.stat().st_mtime_ns, data.stat().st_ino
    bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "back.onnx")
    assert (data.stat().st_mtime_ns, data.stat().st_ino) == stamp
    data.write_bytes(b"somebody else's")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"weights\.bin exists and holds other data"):
        bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "back.onnx", force=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_nothing_folded_comes_back_too(external: bool, in_place: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A byte copy, or an untouched file, has an undo file of a few hundred bytes; data files are part of it."""
    source = put(unfoldable(), tmp_path / "net.onnx", external=external)
    before = listing(tmp_path)
    (tmp_path / "o").mkdir()
    target = source if in_place else tmp_path / "o" / "net.onnx"
    undo = tmp_path / "undo"
    options: dict[str, Any] = {"in_place": True} if in_place else {"output": target}
    assert not bnfold.fold(source, undo_file=undo, **options).folded
    (tmp_path / "back").mkdir()
    bnfold.unfold(target, undo, tmp_path / "back" / "net.onnx")
    assert listing(tmp_path / "back") == before
    assert undo.stat().st_size < 1000


def test_large_data_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side reads more than a few megabytes of a file at a time."""
    from bnfold.undo import ranged

    sizes: list[int] = []
    real = ranged.Ranged.read
    monkeypatch.setattr(ranged.Ranged, "read", lambda *args: sizes.append(args[2] - args[1]) or real(*args))
    proto = conv_bn((256, 256, 3, 3), bias=True)
    proto.graph.initializer.append(tensor("other", np.arange(2**20)))
    source = put(proto, tmp_path / "m.onnx", external=True)
    size = roundtrip(source, tmp_path)
    assert max(sizes) <= 2**20
    assert size < 256 * 256 * 9 * 4 + 5 * 1024 + A_LITTLE


def test_tensors_that_share_bytes_come_back(tmp_path: Path) -> None:
    """Two tensors at overlapping places of a data file, and bytes that no tensor has: all of the file is restored."""
    proto = network()
    data = np.random.default_rng(0).normal(size=250).astype(np.float32).tobytes()
    (tmp_path / "m.data").write_bytes(data)
    for name, offset, length in (("w", 100, 432), ("b", 92, 16), ("k", 520, 16), ("gamma", 524, 16)):
        held = next(t for t in proto.graph.initializer if t.name == name)
        point(held, location="m.data", offset=offset, length=length)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "back").mkdir()
    undo = folded(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert external_names(tmp_path / "o.onnx") == {"w_folded", "b_folded", "k"}
    bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "back" / "m.onnx")
    assert (tmp_path / "back" / "m.data").read_bytes() == data


# Whatever changed


def branches(value: float, seed: int = 0) -> ModelProto:
    """A model with large constants in an initializer, in an If branch and in a function; `value` is in each."""
    rng = np.random.default_rng(seed)

    def numbers(name: str) -> TensorProto:
        array = rng.normal(size=5000).astype(np.float32)
        array[2500] = value
        return numpy_helper.from_array(array, name)

    then = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=numbers("")), helper.make_node("Add", ["k", "own"], ["a"])],
        "then", [], [helper.make_tensor_value_info("a", 1, None)], [numbers("own"), numbers("dead")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "else", [],
                              [helper.make_tensor_value_info("b", 1, None)])  # fmt: skip
    nodes = [
        helper.make_node("If", ["x"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("F", ["i"], ["y"], domain="here"),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
                              [helper.make_tensor_value_info("y", 1, None)], [numbers("w")])  # fmt: skip
    body = [helper.make_node("Constant", [], ["c"], value=numbers("")), helper.make_node("Mul", ["p", "c"], ["q"])]
    function = helper.make_function("here", "F", ["p"], ["q"], body, [helper.make_opsetid("", 17)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("here", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)


def between(original: ModelProto, changed: ModelProto, folder: Path) -> int:
    """The size of the undo file that leads from `changed` back to `original`, which it must."""
    source, target = put(original, folder / "a.onnx"), put(changed, folder / "b.onnx")
    (folder / "undo").unlink(missing_ok=True)
    with undo_file(folder / "undo", Document.open(source), {"b.onnx": target}, force=False) as size:
        assert (folder / "undo").stat().st_size == size
    bnfold.unfold(target, folder / "undo", folder / "back.onnx", force=True)
    assert (folder / "back.onnx").read_bytes() == source.read_bytes()
    return size


def then(proto: ModelProto) -> onnx.GraphProto:
    """The branch with constants."""
    return proto.graph.node[0].attribute[1].g


EDITS: dict[str, tuple[Callable[[ModelProto], None], int]] = {
    "a tensor in a branch": (lambda m: then(m).initializer[0].ClearField("raw_data"), 1),
    "a constant in a branch": (lambda m: then(m).node[0].attribute[0].t.ClearField("dims"), 0),
    "a constant in a function": (lambda m: m.functions[0].node[0].attribute[0].t.ClearField("raw_data"), 1),
    "a removed tensor in a branch": (lambda m: then(m).initializer.pop(), 1),
    "a removed function": (lambda m: m.functions.pop(), 1),
    "other names everywhere": (lambda m: [setattr(n, "name", f"n{i}") for i, n in enumerate(m.graph.node)], 0),
    "another order": (lambda m: m.graph.node.reverse(), 0),
    "a branch that is no more": (lambda m: m.graph.node[0].attribute.pop(), 3),
    "metadata at the end": (lambda m: m.metadata_props.add(key="k", value="v" * 5000), 0),
    "all is other": (lambda m: m.CopyFrom(branches(2, seed=1)), 5),
}


@pytest.mark.parametrize("edit", EDITS)
def test_only_what_changed_is_kept(edit: str, tmp_path: Path) -> None:
    """Wherever it lies: the undo file has as many tensors as the changed model lacks, and a little."""
    original, changed = branches(1), branches(1)
    change, tensors = EDITS[edit]
    change(changed)
    size = between(original, changed, tmp_path)
    assert tensors * 20_000 <= size <= tensors * 20_000 + 1500


def test_many_of_one_come_back(tmp_path: Path) -> None:
    """An original with more copies of a tensor than the folded file has bytes: what may not be copied is kept."""
    one = numpy_helper.from_array(np.random.default_rng(0).normal(size=2000).astype(np.float32), "t")
    changed = branches(1)
    changed.graph.initializer.append(one)
    del changed.functions[:], changed.graph.node[:]
    original = branches(1)
    original.CopyFrom(changed)
    for count in range(9):
        original.graph.initializer.append(one)
        original.graph.initializer[-1].name = f"t{count}"
    size = between(original, changed, tmp_path)
    assert size > 9 * 8000 - 20_000


def test_an_original_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be restored must be what was folded: else nothing is written."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    newer = conv_bn(seed=9).SerializeToString()
    monkeypatch.setattr("bnfold.api.Finish._verify", lambda *_: source.write_bytes(newer))
    with pytest.raises(OutputError, match="meanwhile"):
        bnfold.fold(source, tmp_path / "o.onnx", undo_file=tmp_path / "undo")
    assert listing(tmp_path) == {"net.onnx": newer}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 500), st.binary(max_size=40)), max_size=6),
)
def test_any_two_files_are_bridged(seed: int, cuts: list[tuple[int, int, bytes]], tmp_path_factory: Any) -> None:
    """The folded file may be anything, protobuf or not: the original comes back all the same."""
    folder = tmp_path_factory.mktemp("any")
    source = put(branches(1, seed), folder / "a.onnx")
    data = source.read_bytes()
    for place, length, filling in cuts:
        at = place % (len(data) + 1)
        data = data[:at] + filling + data[at + length :]
    (folder / "b.onnx").write_bytes(data)
    with undo_file(folder / "undo", Document.open(source), {"b.onnx": folder / "b.onnx"}, force=False):
        pass
    bnfold.unfold(folder / "b.onnx", folder / "undo", folder / "c.onnx")
    assert (folder / "c.onnx").read_bytes() == source.read_bytes()


def test_typed_and_odd_fields_come_back(tmp_path: Path) -> None:
    """Numbers in float_data, one by one, in a second graph field: protobuf writes all that anew; it comes back."""
    proto = conv_bn((16, 8, 3, 3))
    weight = proto.graph.initializer.pop(0)
    single = [b"\x25" + number.tobytes() for number in numpy_helper.to_array(weight).reshape(-1)]  # field 4, 32 bits
    weight.ClearField("raw_data")
    loose = weight.SerializeToString() + b"".join(single)
    graph = b"\x2a" + varint(len(loose)) + loose
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString() + b"\x3a" + varint(len(graph)) + graph)
    assert bnfold.inspect(source).sites[0].outcome == "folded"
    assert roundtrip(source, tmp_path) < source.stat().st_size


# The command


def test_the_command_line(tmp_path: Path, cli: Cli) -> None:
    """fold --undo-file says so, unfold restores and says where, -q says nothing, JSON has the undo file."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    code, out, err = cli("fold", source, "--undo-file", tmp_path / "u", "-o", tmp_path / "o.onnx")
    assert (code, err) == (0, "")
    assert f"written -> {tmp_path / 'o.onnx'}, undo file {tmp_path / 'u'} (" in out
    code, out, err = cli("unfold", tmp_path / "o.onnx", tmp_path / "u", "-o", tmp_path / "back.onnx")
    assert (code, err) == (0, "")
    assert out.startswith(f"restored -> {tmp_path / 'back.onnx'} (")
    assert (tmp_path / "back.onnx").read_bytes() == source.read_bytes()
    assert cli("unfold", tmp_path / "o.onnx", tmp_path / "u", "--in-place", "-q") == (0, "", "")
    assert (tmp_path / "o.onnx").read_bytes() == source.read_bytes()
    code, out, _ = cli("fold", source, "--undo-file", tmp_path / "u2", "-o", tmp_path / "o2", "--format", "json")
    assert code == 0
    assert f'"undo": "{tmp_path / "u2"}"' in out


@pytest.mark.parametrize("name", ["net.onnx", "weights.bin", "o.onnx", "o.onnx.data", "taken", "no/such", "."])
def test_the_undo_file_is_no_other_file(name: str, tmp_path: Path, cli: Cli) -> None:
    """Not the model, its data, the output or what exists: exit 2, nothing written. --force replaces an older one."""
    source = put(conv_bn(), tmp_path / "net.onnx", external=True)
    (tmp_path / "taken").write_bytes(b"mine")
    before = listing(tmp_path)
    args = ("fold", source, "-o", tmp_path / "o.onnx", "--undo-file", tmp_path / name)
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert err
    assert listing(tmp_path) == before
    forced = cli(*args, "--force")[0]
    assert (forced == 0) == (name == "taken")


def test_an_undo_file_needs_two_files(tmp_path: Path) -> None:
    """A model in memory, or a fold without output, has no bytes to go back to."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    for model, output in ((conv_bn(), tmp_path / "o.onnx"), (source, None)):
        with pytest.raises(UsageError, match="undo"):
            bnfold.fold(model, output, undo_file=tmp_path / "u", verify=False)
    assert list(listing(tmp_path)) == ["net.onnx"]


@pytest.mark.parametrize("case", ["folded", "undo", "exists", "both", "neither", "folder", "link"])
def test_unfold_overwrites_nothing_unasked(case: str, tmp_path: Path, cli: Cli) -> None:
    """The inputs, an existing file without --force, no output, a folder, a link in place: exit 2, nothing changed."""
    undo = folded(put(conv_bn(), tmp_path / "net.onnx"), tmp_path / "o.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "o.onnx")
    output = {"folded": "o.onnx", "undo": "undo", "exists": "net.onnx", "both": "b.onnx", "folder": "."}.get(case)
    args = [] if output is None else ["-o", tmp_path / output]
    args += ["--in-place"] if case in ("both", "link") else []
    args += ["--force"] if case in ("folded", "undo", "folder") else []
    before = listing(tmp_path)
    code, out, err = cli("unfold", tmp_path / ("link.onnx" if case == "link" else "o.onnx"), undo, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert listing(tmp_path) == before


def test_the_wrong_folded_file_is_refused(tmp_path: Path, cli: Cli) -> None:
    """A model that was changed since, or another one: exit 2, and the message says which digest was expected."""
    undo = folded(put(conv_bn(), tmp_path / "net.onnx"), tmp_path / "o.onnx")
    data = (tmp_path / "o.onnx").read_bytes()
    for other in (data[:-1] + bytes([data[-1] ^ 1]), data + b"\0", b""):
        (tmp_path / "x.onnx").write_bytes(other)
        before = listing(tmp_path)
        code, _, err = cli("unfold", tmp_path / "x.onnx", undo, "-o", tmp_path / "back.onnx")
        assert code == 2
        assert "is not the file that" in err
        assert hashlib.sha256(data).hexdigest() in err
        assert listing(tmp_path) == before


# All or nothing


def test_the_undo_file_is_there_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the commit the undo file is complete in its place."""
    from bnfold.staging import Staged

    seen: list[bytes] = []
    real = Staged._put
    monkeypatch.setattr(
        Staged, "_put", lambda *args, **kw: seen.append((tmp_path / "undo").read_bytes()) or real(*args, **kw)
    )
    undo = folded(put(conv_bn(), tmp_path / "net.onnx"), tmp_path / "o.onnx")
    assert seen == [undo.read_bytes()]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError])
@pytest.mark.parametrize("existing", [False, True])
def test_no_model_no_undo_file(
    error: type[BaseException], existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001
) -> None:  # fmt: skip
    """Where the commit fails, the undo file goes again, and an older one that --force replaced is back."""
    from bnfold.staging import Staged

    source = put(conv_bn(), tmp_path / "net.onnx", external=True)
    if existing:
        (tmp_path / "undo").write_bytes(b"older")
    before = listing(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        assert (tmp_path / "undo").read_bytes().startswith(b"\x93BNFUNDO")
        raise error("no")

    monkeypatch.setattr(Staged, "_put", fail)
    with pytest.raises(error):
        folded(source, tmp_path / "o.onnx", force=existing)
    assert listing(tmp_path) == before


def test_an_interrupt_after_the_commit_keeps_the_undo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is in its place, so its undo file stays."""
    from bnfold.staging import Staged

    real = Staged.commit

    def late(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise KeyboardInterrupt

    source = put(conv_bn(), tmp_path / "net.onnx")
    monkeypatch.setattr(Staged, "commit", late)
    with pytest.raises(KeyboardInterrupt):
        folded(source, tmp_path / "o.onnx")
    monkeypatch.undo()
    bnfold.unfold(tmp_path / "o.onnx", tmp_path / "undo", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == source.read_bytes()


def _fail_at(at: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the call number `at` of those that write fail as on a full disk; the list fills with their names."""
    calls: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == at:
                raise OSError(28, "No space left on device")
            return real(*args, **options)

        return call

    for name in ("write", "link", "rename", "replace", "fsync"):
        patch.setattr(os, name, watched(name, getattr(os, name)))
    return calls


def test_unfold_is_all_or_nothing_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error at any of its writes, renames or syncs: no file is changed, made or left; new folders go too."""
    source = externalise(network(), tmp_path / "model.onnx", file="data/deep/{}.bin")
    undo = folded(source, tmp_path / "o.onnx")
    (tmp_path / "b").mkdir()
    before = listing(tmp_path)
    hits = 0
    for at in range(200):
        with monkeypatch.context() as patch:
            calls = _fail_at(at, patch)
            try:
                bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "b" / "model.onnx")
            except OutputError:
                hits += 1
        if len(calls) <= at:
            break
        if not (tmp_path / "b" / "model.onnx").exists():
            assert listing(tmp_path) == before, calls[-1]
            continue
        for path in sorted((tmp_path / "b").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert hits > 10
    assert (tmp_path / "b" / "model.onnx").read_bytes() == source.read_bytes()


def test_a_damaged_original_is_never_written(tmp_path: Path) -> None:
    """UndoError is the answer to an undo file whose numbers changed; no file comes of it."""
    undo = folded(put(conv_bn((32, 16, 3, 3)), tmp_path / "net.onnx"), tmp_path / "o.onnx")
    data = bytearray(undo.read_bytes())
    data[len(data) // 2] ^= 1
    undo.write_bytes(data)
    before = listing(tmp_path)
    with pytest.raises(UndoError, match="damaged"):
        bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "back.onnx")
    assert listing(tmp_path) == before
