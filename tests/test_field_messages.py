"""Nothing else is touched: every message that onnx.proto has, with documentation, metadata and unknown fields.

x is (1, 4, 8, 8), a Conv `conv` is 3x3 with pads 1, its map is `bn`, unless the case says otherwise.
"""

import numpy as np
import pytest
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, TensorProto, helper

import bnfold
from bnfold import document, sweep, wire
from bnfold.document import serialise
from tests.conftest import ops, tensor
from tests.folding import check, fold, graph
from tests.test_field_interface import BN, CONV, FLOAT, W, X, branch, foreign_tensors, spread


def furnished():
    """A foldable pair, and all around it at least one of each message that onnx.proto has."""
    text = CONV + BN + "\nr = Relu (y)\nq = org.strange.Kept <alpha = 2.0> (r)\nz = org.strange.Odd (q)"
    proto = graph(text, X, ir_version=11, opset=23, outputs=("y", "z"), y=X, **W)
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "maker", "1.2", "org.example", 7
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*e) for e in (("org.strange", 3), ("", 23), ("ai.onnx.ml", 4)))
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(tensor("sp", [1.0]), tensor("", [0], np.int64), [4])
    )
    for name in ("w", "c", "r", "y", "q"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, W["w"] if name == "w" else X))
    for name in ("w", "c", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")
    proto.graph.initializer.extend(foreign_tensors())
    proto.graph.node[-1].attribute.extend(attributes())
    proto.graph.node[-1].overload = "second"
    kind = helper.make_tensor_type_proto(FLOAT, ["N", 2])
    proto.graph.input.extend([
        helper.make_value_info("seq", helper.make_sequence_type_proto(kind)),
        helper.make_value_info("opt", helper.make_optional_type_proto(kind)),
        helper.make_value_info("map", helper.make_map_type_proto(TensorProto.INT64, kind)),
        helper.make_sparse_tensor_value_info("sparse", FLOAT, [2]),
    ])  # fmt: skip
    proto.functions.append(function())
    step = proto.training_info.add()
    step.algorithm.CopyFrom(helper.make_graph([helper.make_node("Neg", ["other"], ["new"])], "step", [], []))
    step.initialization.CopyFrom(helper.make_graph([], "start", [], [], [tensor("seed", [1.0])]))
    step.update_binding.add(key="other", value="new")
    step.initialization_binding.add(key="other", value="seed")
    return spread(proto)


def attributes():
    """An attribute of every kind; graphs inside graphs."""
    held = tensor("inside", [1.0, 2.0])
    sparse = helper.make_sparse_tensor(tensor("v", [1.0]), tensor("", [0], np.int64), [4])
    deep = helper.make_node("Deep", ["x"], ["deep"], domain="org.strange", g=branch("deeper", "x"))
    inner = helper.make_graph([deep], "inner", [], [helper.make_tensor_value_info("deep", FLOAT, None)], [held])
    inner.value_info.append(helper.make_tensor_value_info("mid", FLOAT, ["H"]))
    kinds = {"f": 0.1, "i": -1, "s": b"\xff\0", "t": held, "g": inner, "sparse": sparse, "fs": [1.5], "is": [3],
             "ss": [b"a"], "ts": [held, held], "gs": [inner], "tp": helper.make_tensor_type_proto(FLOAT, ["C"]),
             "tps": [helper.make_tensor_type_proto(FLOAT, None)], "sps": [sparse]}  # fmt: skip
    return [helper.make_attribute(name, value, f"{name} doc") for name, value in kinds.items()]


def function():
    """org.strange.Kept: an attribute by reference, one with a default, value_info, an overload."""
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    values = [helper.make_tensor_value_info("a", FLOAT, None)]
    default = [helper.make_attribute("beta", 3.0)]
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("org.strange", 3)]
    made = helper.make_function("org.strange", "Kept", ["a"], ["b"], [node], imports, ["alpha"], default)
    made.value_info.extend(values)
    made.overload = "first"
    return made


def messages(message, path=""):
    """Every message inside a message, itself too, with its path."""
    yield path, message
    for kind, value in message.ListFields():
        if kind.message_type is None:
            continue
        entries = [value] if isinstance(value, Message) else list(value)
        for index, entry in enumerate(entries):
            yield from messages(entry, f"{path}/{kind.name}{index}")


def of_the_site(path, proto):
    """Whether a message belongs to the BatchNormalization, its parameters, or what is said of the vanished value."""
    if not path.startswith("/graph0/"):
        return False
    field = path.split("/")[2]
    gone = {"/node1"} | {f"/initializer{i}" for i, t in enumerate(proto.graph.initializer) if t.name.startswith("y.")}
    for name, entries in (("value_info", proto.graph.value_info), ("quantization_annotation", annotated(proto))):
        gone |= {f"/{name}{i}" for i, entry in enumerate(entries) if getattr(entry, "name", entry) == "c"}
    return f"/{field}" in gone


def annotated(proto):
    """The tensors that annotations speak of."""
    return [entry.tensor_name for entry in proto.graph.quantization_annotation]


def marked(proto, mark):
    """The model with a mark put into every message: the mark of its path."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for path, message in messages(copy):
        mark(path, message)
    return copy


@pytest.fixture(params=["memory", "file", "lifted"])
def folded(request, tmp_path, monkeypatch):
    """A function that folds a model and returns the result's bytes: given in memory, as a file, as a large file."""
    if request.param == "lifted":
        monkeypatch.setattr(document, "LIFT_FROM", 0)
        monkeypatch.setattr(wire, "SMALLEST", 16)
        monkeypatch.setattr(sweep, "SMALLEST", 16)

    def call(proto):
        if request.param == "memory":
            result = fold(proto)
            assert len(result.folded) == 1
            return serialise(result.model)
        (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
        assert len(bnfold.fold(tmp_path / "in.onnx", tmp_path / "out.onnx", verify=False).folded) == 1
        return (tmp_path / "out.onnx").read_bytes()

    return call


def test_unknown_fields_stay_everywhere(folded):
    """A field that no version of onnx has, in every message of the model: all but those of what vanished survive."""

    def mark(path, message):
        data = f"<{path}>".encode()
        message.MergeFromString(b"\xfa\x7f" + bytes([len(data)]) + data)  # field 2047

    before = furnished()
    paths = [path for path, _ in messages(before)]
    assert len(paths) > 250
    found = folded(marked(before, mark))
    lost = {path for path in paths if f"<{path}>".encode() not in found}
    assert lost == {path for path in paths if of_the_site(path, before)}


def test_documentation_and_metadata_stay_everywhere(folded):
    """doc_string and metadata_props wherever onnx has them: all but those of what vanished survive."""

    def mark(path, message):
        fields = message.DESCRIPTOR.fields_by_name
        if "doc_string" in fields:
            message.doc_string = f"<{path} doc>"
        if "metadata_props" in fields:
            message.metadata_props.add(key=f"<{path} key>", value=f"<{path} value>")

    before = furnished()
    found = folded(marked(before, mark))
    known = [(path, message.DESCRIPTOR.fields_by_name) for path, message in messages(before)]
    texts = [(path, f"<{path} doc>") for path, fields in known if "doc_string" in fields]
    texts += [(path, f"<{path} {k}>") for path, f in known if "metadata_props" in f for k in ("key", "value")]
    assert len(texts) > 200
    lost = {path for path, text in texts if text.encode() not in found}
    assert lost == {path for path, _ in texts if of_the_site(path, before)}


def test_everything_beside_the_pair_is_equal(folded):
    """Field by field: but for Conv, its tensors and what vanished the model is the same, in the same order."""
    before = furnished()
    found = ModelProto.FromString(folded(before))
    assert list(found.graph.node)[1:] == list(before.graph.node)[2:]
    foreign = {t.name for t in foreign_tensors()}
    assert [t for t in found.graph.initializer if t.name in foreign] == foreign_tensors()
    assert [t.name for t in found.graph.initializer if t.name not in foreign] == ["w_folded", "w_bias"]
    assert annotated(found) == ["w_folded", "y"]
    for proto in (before, found):
        for kept in ("node", "initializer", "value_info", "quantization_annotation"):
            proto.graph.ClearField(kept)
    assert found == before


def test_value_info_keeps_its_order():
    """The entry of the vanished value goes, that of the weight follows its name, all others stay where they are."""
    before = furnished()
    found = fold(before).model
    assert [value.name for value in found.graph.value_info] == ["w_folded", "r", "y", "q"]
    assert list(found.graph.value_info)[1:] == list(before.graph.value_info)[2:]


@pytest.mark.parametrize("opsets", [
    [("org.strange", 3), ("", 17), ("ai.onnx.ml", 3), ("com.microsoft", 1)],
    [("ai.onnx.ml", 3), ("ai.onnx", 17), ("org.strange", 3), ("", 17)],
])  # fmt: skip
def test_imports_stay_in_their_order(opsets):
    """Several domains, unused ones, the standard one by both its names: none is added, dropped or moved."""
    proto = graph(CONV + BN, X, **W)
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*entry) for entry in opsets)
    found = fold(proto).model
    assert ops(found) == ["Conv"]
    assert [(entry.domain, entry.version) for entry in found.opset_import] == opsets


LEFTOVERS = {
    "initializers": (CONV + BN, W, {}),
    "Constant nodes": (
        "w = Transpose <perm = [1, 0, 2, 3]> (u)\ni = Identity (w)\n"
        "c = Conv <pads = [1, 1, 1, 1]> (x, i)\n" + BN, {"u": (4, 4, 3, 3)}, {}),
    "a chain of constants of constants": (
        CONV + "e = Constant <value_float = 0.1> ()\nf = Add (k, e)\ns = Sqrt (f)\nd = Div (h, s)\ny = Mul (c, d)",
        W | {"k": np.ones((4, 1, 1)), "h": (4, 1, 1)}, {}),
    "MatMul to Gemm": ("c = MatMul (x, w)\n" + BN, {"w": (4, 4)}, {"x": (3, 4)}),
    "sibling": (CONV + "d = BN <maps = 4> (x)\ny = Add (c, d)", W, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFTOVERS)
def test_nothing_unread_is_left_behind(case):
    """Each initializer and node that is there after a fold is read by something, or an output."""
    text, tensors, more = LEFTOVERS[case]
    found = check(graph(text, **({"x": X} | more), **tensors), limit=4e-6).model
    read = {name for node in found.graph.node for name in node.input} | {value.name for value in found.graph.output}
    made = [name for node in found.graph.node for name in node.output]
    assert {t.name for t in found.graph.initializer} | set(made) <= read
