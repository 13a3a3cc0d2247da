"""Large tensors beside protobuf: taken out and put back, the bytes are those that protobuf writes."""

import random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

import bnfold
from bnfold import document, sweep, wire
from bnfold.wire import lift, splice
from tests.conftest import MODELS, assert_same_outputs, batchnorm_parameters, conv_bn, model, ops, tensor


def joined(pieces) -> bytes:
    """The pieces, one after the other."""
    return b"".join(pieces)


SMALLEST = 1024


@pytest.fixture(autouse=True)
def smallest(monkeypatch):
    """Tensors from 1 KiB on are large enough, here."""
    monkeypatch.setattr(wire, "SMALLEST", SMALLEST)
    monkeypatch.setattr(sweep, "SMALLEST", SMALLEST)


@pytest.fixture
def lifting(monkeypatch):
    """Files of any size are lifted."""
    monkeypatch.setattr(document, "LIFT_FROM", 0)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_lift_and_splice_are_inverse(path):
    """The skeleton parses, is small, and with its numbers put back gives the bytes that protobuf writes."""
    data = ModelProto.FromString(path.read_bytes()).SerializeToString(deterministic=True)
    skeleton, numbers = lift(data)
    assert joined(splice(skeleton, numbers)) == data
    proto = ModelProto.FromString(skeleton)
    whole = ModelProto.FromString(data)
    assert proto.SerializeToString(deterministic=True) == skeleton
    assert len(skeleton) + sum(map(len, numbers.values())) <= len(data)
    for index, raw in numbers.items():
        assert len(raw) >= SMALLEST
        assert bytes(raw) == whole.graph.initializer[index].raw_data
        assert proto.graph.initializer[index].raw_data == b""
        assert proto.graph.initializer[index].HasField("raw_data")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.sampled_from([0, 1, 255, 256, 4095, 4096, 70000]), max_size=6), doc=st.text(max_size=300))
def test_lengths_of_every_size_are_patched(sizes, doc):
    """Lengths grow and shrink over the borders of one, two and three bytes; what follows raw_data stays behind it."""
    held = [tensor(f"w{i}", np.arange(size, dtype=np.float32)) for i, size in enumerate(sizes)]
    for entry in held:
        entry.doc_string = doc
    proto = model([helper.make_node("Relu", ["x"], ["y"])], held)
    data = proto.SerializeToString(deterministic=True)
    parts = lift(data)
    if parts is None:
        assert all(size < 256 for size in sizes)
    else:
        assert sorted(parts[1]) == [i for i, size in enumerate(sizes) if size >= 256]
        assert joined(splice(*parts)) == data


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_lifted_model_folds_to_the_same_bytes(path, tmp_path, monkeypatch):
    """Lifted or parsed whole: the folded file is the same, and FoldResult.model is what was written."""
    bnfold.fold(path, tmp_path / "whole.onnx", verify=False)
    monkeypatch.setattr(document, "LIFT_FROM", 0)
    result = bnfold.fold(path, tmp_path / "lifted.onnx")
    assert result.verification if result.folded else result.verification is None
    assert (tmp_path / "lifted.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert result.model == onnx.load(tmp_path / "whole.onnx")


@pytest.mark.usefixtures("lifting")
def test_shared_and_untouched_weights_survive_lifting(save, tmp_path):
    """A weight with two users is copied for the one that folds; what nobody touches keeps its bytes; twice too."""
    rng = np.random.default_rng(0)
    held = [tensor("w", rng.normal(size=(32, 3, 4, 4))), tensor("k", rng.normal(size=(1, 32, 6, 6)))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Conv", ["x", "w"], ["d"]),
        helper.make_node("Sum", ["n", "d", "k"], ["y"]),
    ]
    source = save(model(nodes, held + batchnorm_parameters(32), (1, 3, 9, 9)))
    result = bnfold.fold(source, tmp_path / "out.onnx")
    assert result.verification
    found = onnx.load(tmp_path / "out.onnx")
    assert [t.name for t in found.graph.initializer] == ["w", "k", "w_folded", "w_bias"]
    assert [t.raw_data for t in found.graph.initializer[:2]] == [t.raw_data for t in held]
    result.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert_same_outputs(onnx.load(source), found)


def test_odd_bytes_are_left_to_protobuf():
    """Nothing to lift, two graphs, raw_data twice, a length that runs out, groups: None, and never an exception."""
    small = conv_bn().SerializeToString()
    big = conv_bn((64, 3, 3, 3)).SerializeToString()
    assert lift(small) is None
    assert lift(big) is not None
    assert lift(big + big) is None
    proto = conv_bn((64, 3, 3, 3))
    raw = proto.graph.initializer[0].raw_data
    doubled = proto.graph.initializer[0].SerializeToString() + b"\x4a\x80\x08" + raw[:1024]
    graph = b"\x2a" + bytes([len(doubled) & 0x7F | 0x80, len(doubled) >> 7 & 0x7F]) + doubled
    assert len(doubled) < 2**14
    assert lift(b"\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7 & 0x7F]) + graph) is None
    for data in (b"", b"\x3a", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x3b", b"\x00", bytes(100)):
        assert lift(data) is None


@pytest.mark.usefixtures("lifting")
def test_damaged_bytes_never_crash(tmp_path):
    """Cut or flipped anywhere, a lifted file is an error or a model, as it is without lifting."""
    rng = random.Random(0)
    data = conv_bn((64, 3, 3, 3), bias=True).SerializeToString()
    path, refused = tmp_path / "m.onnx", 0
    for _ in range(300):
        damaged = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(3):
            spot = rng.randrange(max(1, min(len(damaged), 200 if rng.random() < 0.5 else len(damaged))))
            damaged[spot : spot + 1] = bytes([rng.randrange(256)])
        path.write_bytes(damaged)
        try:
            bnfold.fold(path, verify=False)
        except bnfold.BnfoldError:
            refused += 1
    assert 100 < refused < 300


@pytest.mark.usefixtures("lifting")
def test_nothing_to_fold_is_still_a_byte_copy(save, tmp_path):
    """Also where the file was lifted."""
    source = save(model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor("w", np.ones((1, 3, 64, 64)))]))
    result = bnfold.fold(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert ops(result.model) == ["Add"]
    assert result.model == onnx.load(source)


@pytest.mark.usefixtures("lifting")
def test_nothing_depends_on_the_file_afterwards(save, tmp_path):
    """A result in memory stays whole whatever becomes of the file it was read from."""
    source = save(conv_bn((64, 3, 3, 3)))
    expected = bnfold.fold(source, verify=False).model
    results = [bnfold.fold(source), bnfold.fold(source, tmp_path / "first.onnx")]
    source.write_bytes(b"")
    for i, result in enumerate(results):
        result.save(tmp_path / f"{i}.onnx")
        assert onnx.load(tmp_path / f"{i}.onnx") == expected


@pytest.mark.usefixtures("lifting")
def test_a_lifted_file_folds_in_place(save):
    """The file that was lifted is the one that is replaced."""
    source = save(conv_bn((64, 3, 3, 3)))
    before = onnx.load(source)
    bnfold.fold(source, in_place=True)
    assert_same_outputs(before, onnx.load(source))
    assert "BatchNormalization" not in ops(onnx.load(source))
