"""The fields of external data: checksums stay true, what bnfold does not know stays, and odd but valid forms fold."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

import bnfold
from tests.conftest import Cli, conv_bn, random_feeds, run, tensor
from tests.test_external import assert_folded, externalise, listing, network, point, unfoldable


def edited(source: Path, change: Any) -> ModelProto:
    """Change a model file without touching its data."""
    proto = onnx.load(source, load_external_data=False)
    change(proto)
    source.write_bytes(proto.SerializeToString())
    return proto


def with_keys(proto: ModelProto, *names: str, **keys: str) -> None:
    """Give the named initializers, or all, more keys."""
    for held in proto.graph.initializer:
        if not names or held.name in names:
            held.external_data.extend(StringStringEntryProto(key=k, value=v) for k, v in keys.items())


def fields(path: Path) -> dict[str, dict[str, str]]:
    """The keys of each external initializer, in their order."""
    proto = onnx.load(path, load_external_data=False)
    return {t.name: {entry.key: entry.value for entry in t.external_data} for t in proto.graph.initializer}


def sha1(path: Path) -> str:
    """In hex."""
    return hashlib.sha1(path.read_bytes()).hexdigest()  # noqa: S324 - ExternalData.md's choice


# Keys


@pytest.mark.parametrize("file", ["weights.bin", "{}.bin"])
def test_checksums_stay_true(file: str, tmp_path: Path) -> None:
    """Each tensor that named the SHA-1 of its file names that of the new file; one that named none still does not."""
    source = externalise(network(), tmp_path / "model.onnx", file=file)

    def add(proto: ModelProto) -> None:
        for held in proto.graph.initializer:
            if held.name != "b":
                with_keys(proto, held.name, checksum=sha1(tmp_path / file.format(held.name)))

    edited(source, add)
    bnfold.fold(source, tmp_path / "out.onnx")
    found = fields(tmp_path / "out.onnx")
    expected = sha1(tmp_path / "out.onnx.data")
    assert {name: keys.get("checksum") for name, keys in found.items()} == {
        "w_folded": expected, "b_folded": None, "k": expected
    }  # fmt: skip
    assert_folded(network(), tmp_path / "out.onnx")


def test_the_checksum_is_that_of_the_last_name_too(tmp_path: Path) -> None:
    """Where <target>.data is taken, the data gets another name, and the checksum is still that of its bytes."""
    source = externalise(network(), tmp_path / "model.onnx")
    edited(source, lambda proto: with_keys(proto, checksum="0" * 40))
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's")
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    for keys in fields(tmp_path / "out.onnx").values():
        assert keys["location"] != "out.onnx.data"
        assert keys["checksum"] == sha1(tmp_path / keys["location"])


def test_an_unchanged_model_keeps_its_checksums(tmp_path: Path) -> None:
    """Nothing folds: the copy says what the original says, and it is as true as it was."""
    (tmp_path / "out").mkdir()
    source = externalise(unfoldable(), tmp_path / "model.onnx")
    edited(source, lambda proto: with_keys(proto, checksum=sha1(tmp_path / "weights.bin")))
    bnfold.fold(source, tmp_path / "out" / "model.onnx")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == source.read_bytes()
    assert {keys["checksum"] for keys in fields(source).values()} == {sha1(tmp_path / "out" / "weights.bin")}


def test_unknown_keys_stay_in_their_order(tmp_path: Path) -> None:
    """A vendor's keys come through on every tensor, folded or not; the keys of the place follow the bytes."""
    source = externalise(network(), tmp_path / "model.onnx")

    def rearrange(proto: ModelProto) -> None:
        for held in proto.graph.initializer:
            known = list(held.external_data)
            del held.external_data[:]
            held.external_data.add(key="vendor.first", value="1")
            held.external_data.extend(known)
            held.external_data.add(key="vendor.last", value="\u00e9")

    edited(source, rearrange)
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    for keys in fields(tmp_path / "out.onnx").values():
        assert list(keys) == ["vendor.first", "location", "offset", "length", "vendor.last"]
        assert (keys["vendor.first"], keys["vendor.last"], keys["location"]) == ("1", "\u00e9", "out.onnx.data")


def test_a_model_with_unknown_keys_is_verified_without_noise(tmp_path: Path, cli: Cli) -> None:
    """Onnxruntime refuses such keys, so the reference evaluator stands in; nothing is said on stderr."""
    source = externalise(network(), tmp_path / "model.onnx")
    edited(source, lambda proto: with_keys(proto, vendor="1"))
    code, out, err = cli("fold", source)
    assert (code, err) == (0, "")
    assert "the reference evaluator stood in" in out


def test_keys_that_tell_of_the_old_bytes_go(tmp_path: Path) -> None:
    """The folder of the original, and ranges of weights that onnxruntime packed there, would be false."""
    source = externalise(network(), tmp_path / "model.onnx")
    edited(source, lambda proto: with_keys(proto, basepath=str(tmp_path), prepacked_0="key|0;16;0"))
    bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    assert all(list(keys) == ["location", "offset", "length"] for keys in fields(tmp_path / "out.onnx").values())
    assert_folded(network(), tmp_path / "out.onnx")


def test_no_field_of_the_document_is_changed_by_writing(tmp_path: Path) -> None:
    """After `save`, the result still says where its own data lies, explicit empty raw_data included."""
    source = externalise(network(), tmp_path / "model.onnx")
    edited(source, lambda proto: with_keys(proto, checksum="0" * 40))
    edited(source, lambda proto: setattr(proto.graph.initializer[-1], "raw_data", b""))
    result = bnfold.fold(source, verify=False)
    before = result.model.SerializeToString(deterministic=True)
    result.save(tmp_path / "out.onnx")
    assert result.model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("raw", [b"", b"left over"])
def test_raw_data_beside_external_data_changes_nothing(raw: bytes, tmp_path: Path) -> None:
    """A tensor may say EXTERNAL and hold raw_data, which is ignored (onnx does so too): the file's numbers count."""
    source = externalise(network(), tmp_path / "model.onnx")

    def add(proto: ModelProto) -> None:
        for held in proto.graph.initializer:
            held.raw_data = raw

    edited(source, add)
    bnfold.fold(source, tmp_path / "out.onnx", verify=not raw)
    held = {t.name: t for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer}
    assert held["k"].raw_data == raw
    assert held["k"].HasField("raw_data")
    assert not held["w_folded"].raw_data
    feeds = random_feeds(network())
    expected = run(network(), feeds)[0]
    assert np.abs(run(onnx.load(tmp_path / "out.onnx"), feeds)[0] - expected).max() <= 2e-6 * np.abs(expected).max()


# Layouts


def test_gaps_and_overlaps_and_any_order_fold(tmp_path: Path) -> None:
    """Tensors from the file's end to its start, with gaps, two of them on the same bytes."""
    proto = network()
    weights = {t.name: t.raw_data for t in proto.graph.initializer}
    content = bytearray(b"\x55" * 8192)
    copy = ModelProto()
    copy.CopyFrom(proto)
    offset = 8192
    for held in copy.graph.initializer:
        if held.name == "var":  # the same numbers as gamma's: its own bytes
            continue
        offset -= len(weights[held.name]) + 13
        content[offset : offset + len(weights[held.name])] = weights[held.name]
        point(held, location="d.bin", offset=offset, length=len(weights[held.name]))
    (tmp_path / "d.bin").write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(copy.SerializeToString())
    bnfold.fold(tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert_folded(proto, tmp_path / "out.onnx")


def test_tensors_that_share_their_bytes_still_do(tmp_path: Path) -> None:
    """Three tensors on one megabyte, which no fold changes, are one megabyte in the new file too."""
    proto = conv_bn()
    proto.graph.node[1].output[0] = "z"
    size = 2**20
    for name in ("k1", "k2", "k3"):
        held = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size // 4])
        point(held, location="d.bin", offset=0, length=size)
        proto.graph.initializer.append(held)
        proto.graph.node.append(helper.make_node("ReduceSum", [name], [f"s_{name}"], keepdims=0))
    proto.graph.node.append(helper.make_node("Sum", ["z", "s_k1", "s_k2", "s_k3"], ["y"]))
    (tmp_path / "d.bin").write_bytes(np.ones(size // 4, np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert len(bnfold.fold(tmp_path / "model.onnx", tmp_path / "out.onnx").folded) == 1
    (data,) = tmp_path.glob("out*.data")
    assert data.stat().st_size == size
    feeds = random_feeds(proto)
    assert np.allclose(*(run(tmp_path / name, feeds)[0] for name in ("model.onnx", "out.onnx")), rtol=1e-6)


def _hidden(where: str, held: TensorProto) -> ModelProto:
    """Conv -> BatchNormalization -> Add of `held`, which stands in a Constant, a branch of an If, or a function."""
    proto = conv_bn()
    proto.graph.node[1].output[0] = "z"
    constant = helper.make_node("Constant", [], ["k"], value=held)
    if where == "constant":
        proto.graph.node.append(constant)
    elif where == "branch":
        out = helper.make_tensor_value_info("k", TensorProto.FLOAT, None)
        branch = helper.make_graph([constant], "branch", [], [out])
        proto.graph.initializer.append(tensor("cond", True, np.bool_))  # noqa: FBT003 - the value itself
        proto.graph.node.append(helper.make_node("If", ["cond"], ["k"], then_branch=branch, else_branch=branch))
    elif where == "branch-initializer":
        held.name = "k"
        out = helper.make_tensor_value_info("k", TensorProto.FLOAT, [4, 1, 1])
        branch = helper.make_graph([], "branch", [], [out], [held])
        proto.graph.initializer.append(tensor("cond", True, np.bool_))  # noqa: FBT003 - the value itself
        proto.graph.node.append(helper.make_node("If", ["cond"], ["k"], then_branch=branch, else_branch=branch))
    else:
        function = helper.make_function("local", "F", [], ["k"], [constant], [helper.make_opsetid("", 17)])
        proto.functions.append(function)
        proto.opset_import.append(helper.make_opsetid("local", 1))
        proto.graph.node.append(helper.make_node("F", [], ["k"], domain="local"))
    proto.graph.node.append(helper.make_node("Add", ["z", "k"], ["y"], name="last"))
    return proto


@pytest.mark.parametrize("place", ["same", "other", "in-place"])
@pytest.mark.parametrize("where", ["constant", "branch", "branch-initializer", "function"])
def test_data_of_attributes_and_nested_graphs_moves_along(where: str, place: str, tmp_path: Path) -> None:
    """External data anywhere in a model goes into the new file, bit for bit; the old one is not needed any more."""
    values = np.array([0x7FC12345, 0x80000000, 0x00000001, 0x3F812345], np.uint32)
    held = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4, 1, 1])
    point(held, location="d.bin", offset=4, length=16)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "d.bin").write_bytes(b"\xff" * 4 + values.tobytes())
    source = tmp_path / "in" / "model.onnx"
    source.write_bytes(_hidden(where, held).SerializeToString())
    target = {"same": tmp_path / "in" / "out.onnx", "other": tmp_path / "out" / "out.onnx", "in-place": source}[place]
    if place == "in-place":
        bnfold.fold(source, in_place=True, verify=False)
    else:
        bnfold.fold(source, target, verify=False)
        if place == "other":
            shutil.rmtree(tmp_path / "in")
    raw = values.tobytes()
    whole = onnx.load(target)
    if where.startswith("branch"):  # in both branches
        graphs = [entry.g for node in whole.graph.node for entry in node.attribute if entry.name.endswith("_branch")]
        tensors = [g.initializer[0] if g.initializer else g.node[0].attribute[0].t for g in graphs]
        assert len(tensors) == 2
    else:
        nodes = whole.functions[0].node if where == "function" else whole.graph.node
        tensors = [entry.t for node in nodes for entry in node.attribute if entry.name == "value"]
    assert [held.raw_data for held in tensors] == [raw] * len(tensors)


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_external_without_any_location_is_refused(where: str, tmp_path: Path, cli: Cli) -> None:
    """A tensor that says EXTERNAL and names no file, in a model that has no other external data: exit 2."""
    held = TensorProto(name="nowhere", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    proto = conv_bn()
    if where == "initializer":
        proto.graph.initializer.append(held)
    else:
        proto.graph.node.append(helper.make_node("Constant", [], ["nowhere"], value=held))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    before = listing(tmp_path)
    code, out, err = cli("fold", path, "--no-verify")
    assert (code, out) == (2, "")
    assert "'nowhere'" in err
    assert "location is empty" in err
    assert listing(tmp_path) == before


def test_the_default_of_a_functions_attribute_is_checked(tmp_path: Path, cli: Cli) -> None:
    """A tensor that is the default of a local function's attribute may name a file as well: it is checked too."""
    proto = conv_bn()
    body = helper.make_node("Constant", [], ["o"])
    body.attribute.add(name="value", ref_attr_name="v", type=onnx.AttributeProto.TENSOR)
    function = helper.make_function("local", "F", [], ["o"], [body], [helper.make_opsetid("", 17)])
    held = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    point(held, location="../secret.bin", length=4)
    function.attribute_proto.append(helper.make_attribute("v", held))
    proto.functions.append(function)
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    (tmp_path / "in" / "model.onnx").write_bytes(proto.SerializeToString())
    code, _, err = cli("fold", tmp_path / "in" / "model.onnx")
    assert code == 2
    assert "'hidden'" in err


def test_a_tensor_of_three_gigabytes_is_not_read_to_inspect(tmp_path: Path) -> None:
    """What no site touches is never read: 3 GB in a sparse file are looked at by name and size only."""
    elements = 3 * 2**28
    proto = conv_bn()
    held = proto.graph.initializer.add()
    held.CopyFrom(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[elements]))
    point(held, location="huge.bin", offset=0, length=4 * elements)
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(4 * elements)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert bnfold.inspect(tmp_path / "model.onnx").sites[0].outcome == "folded"
