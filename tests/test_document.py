"""Input that is no model, or no valid one: one line that names the file, exit code 2, and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from tests.conftest import MODELS, SHARED_MODELS, Cli, assert_same_outputs, conv_bn, model, ops, run, tensor


def assert_refused(path: Path, cli: Cli, *words: str) -> None:
    """The API, `fold` and `inspect` all refuse the file in one line with its name and `words`; nothing is written."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(bnfold.InvalidModelError) as caught:
        bnfold.fold(path, path.with_name("api.onnx"), verify=False)
    message = str(caught.value)
    assert message.isprintable()
    assert path.name in message
    for word in words:
        assert word in message
    for command in (("fold", path, "--no-verify"), ("inspect", path)):
        assert cli(*command) == (2, "", f"bnfold: error: {message}\n")
    assert sorted(path.parent.rglob("*")) == before


def write(path: Path, data: bytes | ModelProto) -> Path:
    """A file with these bytes; returns its path. Unlike onnx.save this checks nothing."""
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def assert_error_or_result(path: Path, data: bytes) -> bool:
    """Folding these bytes ends in InvalidModelError or in a result, in nothing else; True for a result."""
    write(path, data)
    try:
        result = bnfold.fold(path, verify=False)
    except bnfold.InvalidModelError as error:
        assert str(error).isprintable()  # noqa: PT017 - either ending is right, and each is judged
        return False
    assert result.model.HasField("graph")
    return True


# Files that hold no model


def test_a_missing_file_is_refused(tmp_path: Path, cli: Cli) -> None:
    """A path where nothing is."""
    assert_refused(tmp_path / "absent.onnx", cli, "No such file")


def test_a_folder_is_refused(tmp_path: Path, cli: Cli) -> None:
    """A folder is called a folder."""
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    assert_refused(folder, cli, "is a folder")


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_folder_without_a_name_of_its_own_is_refused(
    name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bnfold fold .` is a usage error like any other folder, although no output name can be made from it."""
    monkeypatch.chdir(tmp_path)
    for command in ("fold", "inspect"):
        code, out, err = cli(command, name)
        assert (code, out) == (2, "")
        assert "is a folder" in err
        assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes made by mkfifo are POSIX only")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, cli: Cli) -> None:
    """A FIFO is never opened: that would hang until somebody writes to it."""
    os.mkfifo(tmp_path / "pipe.onnx")
    assert_refused(tmp_path / "pipe.onnx", cli, "not a plain file")


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_a_symbolic_link_in_a_circle_is_refused(tmp_path: Path, cli: Cli) -> None:
    """A link to itself ends in the system's own words."""
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    assert_refused(tmp_path / "loop.onnx", cli, "cannot read it")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name of 300 characters exists on no file system; that is no bug of bnfold."""
    monkeypatch.chdir(tmp_path)
    for command in ("fold", "inspect"):
        code, out, err = cli(command, "n" * 300)
        assert (code, out) == (2, "")
        assert "too long" in err
        assert err.count("\n") == 1


def test_an_empty_file_is_refused(tmp_path: Path, cli: Cli) -> None:
    """Zero bytes are called empty."""
    assert_refused(write(tmp_path / "empty.onnx", b""), cli, "empty")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull", id="lfs"),
        pytest.param(b"PK\x03\x04\x14\x00\x08\x08archive/data.pkl", "zip", id="zip"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", id="hdf5"),
        pytest.param(b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite", id="tflite"),
        pytest.param(b"\x18\x00\x00\x00ORTM" + bytes(40), "onnxruntime", id="ort"),
        pytest.param(b'{"irVersion": "8", "graph": {}}', "JSON", id="json"),
        pytest.param(b"<!DOCTYPE html><html><body>404</body></html>", "HTML", id="html"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n", "pickle", id="pickle"),
        pytest.param(b"ir_version: 8\ngraph { name: 'g' }\n", "text form", id="text-proto"),
        pytest.param(b"\n\n  <html></html>", "not an ONNX model", id="html-later"),
        pytest.param(b"hello, world\n", "not an ONNX model", id="text"),
        pytest.param(bytes(1000), "not an ONNX model", id="zeros"),
    ],
)  # fmt: skip
def test_other_formats_are_recognised(data: bytes, word: str, tmp_path: Path, cli: Cli) -> None:
    """What is no ONNX model is called by its name, where it can be told."""
    assert_refused(write(tmp_path / "other.onnx", data), cli, word)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    """Three hundred files of noise: each is refused."""
    rng = np.random.default_rng(0)
    for length in rng.integers(1, 400, 300):
        assert not assert_error_or_result(tmp_path / "noise.onnx", rng.bytes(int(length)))


# Models cut short, or damaged


def test_every_truncation_of_a_small_model(tmp_path: Path) -> None:
    """A whole small model, cut at each of its bytes, is refused or still a model; the whole one folds."""
    data = conv_bn((2, 1, 1, 1), bias=True).SerializeToString()
    assert assert_error_or_result(tmp_path / "whole.onnx", data)
    assert not any(assert_error_or_result(tmp_path / "cut.onnx", data[:length]) for length in range(len(data)))


def test_truncations_of_a_real_model(tmp_path: Path, cli: Cli) -> None:
    """A trained network as torch writes it, cut in a hundred places, at its end byte by byte: refused each time."""
    data = (MODELS / "digits_resnet.onnx").read_bytes()
    lengths = [*range(0, len(data), len(data) // 100), *range(len(data) - 20, len(data))]
    path = tmp_path / "cut.onnx"
    assert not any(assert_error_or_result(path, data[:length]) for length in lengths)
    assert_refused(write(path, data[: len(data) // 2]), cli, "cut short")


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80])
def test_a_flipped_bit_is_an_error_or_a_model(mask: int, tmp_path: Path) -> None:
    """One bit wrong, in each byte in turn: names, types, lengths and attributes go bad, and nothing crashes."""
    data = conv_bn((2, 1, 1, 1), bias=True, bn={"epsilon": 1e-3}).SerializeToString()
    crashes: dict[int, str] = {}
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
        try:
            assert_error_or_result(tmp_path / "damaged.onnx", damaged)
        except Exception as error:  # noqa: BLE001 - collected, so that a failure shows all of them
            crashes[place] = f"{type(error).__name__}: {error}"
    assert crashes == {}


# Models that break a rule of the spec


def without(field: str) -> ModelProto:
    """A good model less one field."""
    proto = conv_bn()
    proto.ClearField(field)
    return proto


def with_opsets(*entries: tuple[str, int]) -> ModelProto:
    """A good model with these opset imports instead of its own."""
    proto = without("opset_import")
    proto.opset_import.extend(helper.make_opsetid(*entry) for entry in entries)
    return proto


@pytest.mark.parametrize(
    ("proto", "word"),
    [
        pytest.param(without("graph"), "no graph", id="no-graph"),
        pytest.param(without("opset_import"), "opset_import", id="no-opset-import"),
        pytest.param(without("ir_version"), "IR version", id="no-ir-version"),
        pytest.param(with_opsets(("", 0)), "opset 0 is unknown", id="opset-0"),
        pytest.param(with_opsets(("", -3)), "opset -3 is unknown", id="opset-negative"),
        pytest.param(with_opsets(("", 999)), "opset 999 is unknown", id="opset-999"),
        pytest.param(with_opsets(("ai.onnx", 999)), "opset 999 is unknown", id="opset-999-long-name"),
        pytest.param(with_opsets(("", 11), ("", 17)), "[11, 17]", id="two-versions"),
        pytest.param(with_opsets(("", 9), ("ai.onnx", 17)), "[9, 17]", id="two-versions-two-names"),
    ],
)
def test_a_bad_header_is_refused(proto: ModelProto, word: str, tmp_path: Path, cli: Cli) -> None:
    """No graph, no IR version, or no opset that makes sense."""
    assert_refused(write(tmp_path / "header.onnx", proto), cli, word)


def test_the_same_import_twice_is_no_contradiction(tmp_path: Path) -> None:
    """`` and `ai.onnx` are one domain: naming it twice with one version folds."""
    path = write(tmp_path / "twice.onnx", with_opsets(("", 17), ("ai.onnx", 17)))
    assert len(bnfold.fold(path, verify=False).folded) == 1


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    """A node that is called like its first output."""
    return helper.make_node(op, inputs, outputs, name=outputs[0] if outputs else "", **attributes)


def changed(change: Callable[[ModelProto], Any], **options: Any) -> ModelProto:
    """A good Conv -> BatchNormalization with one thing spoilt."""
    proto = conv_bn(**options)
    change(proto)
    return proto


def _set_output(proto: ModelProto, name: str) -> None:
    proto.graph.output[0].name = name


GRAPHS = {
    "cycle": (
        model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])], []),
        ("cycle",),
    ),
    "cycle-of-one": (model([node("Add", ["x", "y"], ["y"])], []), ("cycle", "'y'")),
    "missing-producer": (
        changed(lambda proto: proto.graph.node[0].input.__setitem__(0, "absent")),
        ("'absent'", "nothing produces", "'conv'"),
    ),
    "missing-initializer": (changed(lambda proto: proto.graph.initializer.__delitem__(0)), ("'w'", "nothing")),
    "missing-output": (changed(lambda proto: _set_output(proto, "absent")), ("'absent'",)),
    "two-producers": (
        model([node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"], name="second")], []),
        ("'y'", "twice", "'second'"),
    ),
    "one-node-twice-the-same-output": (
        model([helper.make_node("Split", ["x"], ["y", "y"], name="split")], []),
        ("'y'", "twice"),
    ),
    "producer-of-an-input": (model([node("Relu", ["x"], ["x"]), node("Abs", ["x"], ["y"])], []), ("'x'", "twice")),
    "producer-of-an-initializer": (
        model([node("Relu", ["x"], ["k"]), node("Add", ["x", "k"], ["y"])], [tensor("k", [1.0])]),
        ("'k'", "twice"),
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_is_none_is_refused(case: str, tmp_path: Path, cli: Cli) -> None:
    """Cycles, values that nothing makes and values that are made twice, each by its name."""
    proto, words = GRAPHS[case]
    assert_refused(write(tmp_path / "graph.onnx", proto), cli, *words)


def _weight(change: Callable[[TensorProto], Any]) -> ModelProto:
    return changed(lambda proto: change(proto.graph.initializer[0]))


def _float_data(held: TensorProto, count: int) -> None:
    held.ClearField("raw_data")
    held.float_data.extend([1.0] * count)


def _dims(held: TensorProto, *dims: int) -> None:
    held.ClearField("dims")
    held.dims.extend(dims)


TENSORS = {
    "short-by-bytes": _weight(lambda w: setattr(w, "raw_data", w.raw_data[:-3])),
    "short-by-an-element": _weight(lambda w: setattr(w, "raw_data", w.raw_data[:-4])),
    "long": _weight(lambda w: setattr(w, "raw_data", w.raw_data + bytes(4))),
    "empty": _weight(lambda w: w.ClearField("raw_data")),
    "typed-short": _weight(lambda w: _float_data(w, 107)),
    "typed-long": _weight(lambda w: _float_data(w, 109)),
    "wrong-type": _weight(lambda w: setattr(w, "data_type", TensorProto.DOUBLE)),
    "negative-dims": _weight(lambda w: _dims(w, 4, -3, -3, 3)),
    "one-negative-dim": _weight(lambda w: _dims(w, 4, -1, 3, 3)),
    "dims-too-large": _weight(lambda w: _dims(w, 4, 2**40, 2**40, 3)),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_weight_that_does_not_fit_its_shape_is_refused(case: str, tmp_path: Path, cli: Cli) -> None:
    """The bytes of a weight are more or fewer than its shape and type say."""
    assert_refused(write(tmp_path / "tensor.onnx", TENSORS[case]), cli, "tensor 'w'")


def test_a_parameter_that_does_not_fit_its_shape_is_refused(tmp_path: Path, cli: Cli) -> None:
    """The same for a parameter of the BatchNormalization."""
    proto = changed(lambda proto: setattr(proto.graph.initializer[3], "raw_data", bytes(15)))
    assert_refused(write(tmp_path / "tensor.onnx", proto), cli, "tensor 'mean'")


def _epsilon(proto: ModelProto, **fields: Any) -> None:
    proto.graph.node[1].attribute.add(name="epsilon", **fields)


NODES = {
    "epsilon-is-text": changed(lambda proto: _epsilon(proto, type=onnx.AttributeProto.STRING, s=b"small")),
    "epsilon-is-a-list": changed(lambda proto: _epsilon(proto, type=onnx.AttributeProto.FLOATS, floats=[1.0, 2.0])),
    "epsilon-has-no-type": changed(_epsilon),
    "no-outputs": changed(lambda proto: proto.graph.node[1].ClearField("output")),
}


@pytest.mark.parametrize("case", NODES)
def test_a_batchnorm_that_breaks_its_own_spec_never_crashes(case: str, tmp_path: Path) -> None:
    """An attribute of the wrong kind or no output: refused with a code or an InvalidModelError, and not folded."""
    path = write(tmp_path / "node.onnx", NODES[case])
    try:
        result = bnfold.fold(path, verify=False)
    except bnfold.InvalidModelError as error:
        assert "bn" in str(error) or "'y'" in str(error)  # noqa: PT017 - either ending is right, and each is judged
    else:
        assert not result.folded
        assert result.refused[0].code


@pytest.mark.parametrize("name", ["conv", "gamma", "bn", "y"])
def test_a_name_that_is_no_text_is_refused(name: str, tmp_path: Path, cli: Cli) -> None:
    """Names are UTF-8 by the spec; others are refused, whether they belong to a node, a tensor or a value."""
    proto = conv_bn()
    data = proto.SerializeToString()
    field = bytes([len(name)]) + name.encode()
    assert field in data
    damaged = data.replace(field, bytes([len(name)]) + b"\xff" * len(name))
    assert_refused(write(tmp_path / "names.onnx", damaged), cli, "UTF-8")


# Odd, but valid


def test_nodes_in_any_order_fold(tmp_path: Path) -> None:
    """Nodes may stand before what they read, as onnxruntime allows: it folds, equal to the original."""
    proto = conv_bn(bias=True)
    nodes = list(proto.graph.node)
    proto.graph.ClearField("node")
    proto.graph.node.extend(reversed(nodes))
    result = bnfold.fold(write(tmp_path / "reversed.onnx", proto))
    assert ops(result.model) == ["Conv"]
    assert result.verification
    assert_same_outputs(proto, result.model)


def test_constants_behind_their_readers_fold(tmp_path: Path) -> None:
    """A parameter that a chain of nodes at the end of the file computes counts as the constant it is."""
    proto = conv_bn()
    proto.graph.node[1].input[1] = "second"
    proto.graph.node.extend([node("Identity", ["first"], ["second"]), node("Neg", ["gamma"], ["first"])])
    result = bnfold.fold(write(tmp_path / "late.onnx", proto))
    assert ops(result.model) == ["Conv"]
    assert_same_outputs(proto, result.model)


UNORDERED = SHARED_MODELS / "ort_fuse-conv-bn-mul-add-unsqueeze-no-bias.onnx"


@pytest.mark.skipif(not UNORDERED.exists(), reason="../shared/models is not part of the repository")
def test_a_public_model_out_of_order_folds() -> None:
    """onnxruntime's own fusion test, whose nodes are in no topological order."""
    original = onnx.load(UNORDERED)
    made: set[str] = {value.name for value in (*original.graph.input, *original.graph.initializer)}
    in_order = True
    for entry in original.graph.node:
        in_order = in_order and made.issuperset(filter(None, entry.input))
        made.update(entry.output)
    assert not in_order
    result = bnfold.fold(UNORDERED)
    assert result.folded
    assert result.verification
    assert "BatchNormalization" not in ops(result.model)


def test_a_model_with_a_long_name_folds_beside_it(tmp_path: Path, cli: Cli) -> None:
    """A file name that leaves no room for `.folded` is told so in one line; with a short -o it folds."""
    path = write(tmp_path / f"{'n' * 249}.onnx", conv_bn())
    code, _, err = cli("fold", path)
    assert code == 2
    assert "too long" in err
    assert err.count("\n") == 1
    assert cli("fold", path, "-o", tmp_path / "short.onnx", "-q") == (0, "", "")
    assert len(run(tmp_path / "short.onnx", {"x": np.zeros((2, 3, 9, 9), np.float32)})) == 1


@pytest.mark.parametrize("list_name", ["input", "output", "value_info", "initializer"])
def test_names_in_a_branch_must_be_text(list_name: str, tmp_path: Path, cli: Cli) -> None:
    """Names inside the graphs of the main graph's own nodes are looked at too."""
    value = onnx.helper.make_tensor_value_info("zzzz", TensorProto.FLOAT, None)
    inner = onnx.helper.make_node("Identity", ["x"], ["zzzz"])
    branch = onnx.helper.make_graph([inner], "branch", [], [value])
    if list_name != "output":
        entry = tensor("qqqq", [1.0]) if list_name == "initializer" else onnx.helper.make_tensor_value_info(
            "qqqq", TensorProto.FLOAT, None
        )  # fmt: skip
        getattr(branch, list_name).append(entry)
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    data = model([node], []).SerializeToString().replace(b"qqqq" if list_name != "output" else b"zzzz", b"\xc0zzz")
    path = tmp_path / "branch.onnx"
    path.write_bytes(data)
    assert_refused(path, cli, "UTF-8")
