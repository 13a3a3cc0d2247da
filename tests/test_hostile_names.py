"""Names and texts out of a model file are foreign: escaped in text, JSON and messages, wherever they stand.

Nothing below 0x20 and nothing from 0x7f to 0x9f reaches the terminal; `ends_well` looks at every line.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.cli import _run
from tests.conftest import Cli, conv_bn, tensor
from tests.hostile_run import N, calling, ends_well

NASTY = "\x1b[31m\x00\x07\r\n\t\x7f\x9b2J<script>alert(1)</script>../../x\u202egnp.\u2066\u2028\ufeff'\"\\[bold]{0}%n"
LONG = "n" * 100_000
MARK = "ZZZZZZ"  # stands for bytes that are no UTF-8: a lone surrogate, and then some
BROKEN = b"\xed\xa0\x80\xff\xfe\xc0"


def rename(proto: ModelProto, old: str, new: str) -> None:
    """A value has another name everywhere."""
    graph = proto.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for held in (*graph.input, *graph.output, *graph.initializer):
        if held.name == old:
            held.name = new


def _operator(proto: ModelProto, text: str) -> None:
    proto.graph.node.add(op_type=text, domain=text, input=["y"], output=["z"], name=text)
    proto.opset_import.add(domain=text, version=1)


def _function(proto: ModelProto, text: str) -> None:
    proto.CopyFrom(calling())
    proto.graph.node[1].op_type = text
    imports = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("l", text, ["a"], ["b"], [N("Relu", ["a"], ["b"])], imports))
    inner = N("BatchNormalization", ["b", "b", "b", "b", "b"], [text], name=text)
    proto.functions[0].node.append(inner)
    proto.functions[0].doc_string = text


def _branch(proto: ModelProto, text: str) -> None:
    inside = N("BatchNormalization", ["y", "gamma", "beta", "mean", "var"], [text], name=text)
    body = helper.make_graph([inside], text, [], [helper.make_tensor_value_info(text, TensorProto.FLOAT, None)])
    proto.graph.initializer.append(tensor("flag", 1, np.bool_))
    proto.graph.node.append(N("If", ["flag"], ["z"], then_branch=body, else_branch=body))


def _external(proto: ModelProto, text: str) -> None:
    held = proto.graph.initializer[0]
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value=text)
    held.external_data.add(key="offset", value=text)
    held.external_data.add(key=text, value=text)


def _texts(proto: ModelProto, text: str) -> None:
    """What is no name at all."""
    proto.producer_name = proto.producer_version = proto.doc_string = proto.graph.doc_string = text
    proto.metadata_props.add(key=text, value=text)
    proto.graph.name = proto.graph.node[0].doc_string = text
    proto.graph.input[0].type.denotation = text


def _annotations(proto: ModelProto, text: str) -> None:
    entry = proto.graph.quantization_annotation.add(tensor_name=text)
    entry.quant_parameter_tensor_names.add(key=text, value=text)
    proto.training_info.add().update_binding.add(key=text, value=text)


def _cycle(proto: ModelProto, text: str) -> None:
    proto.graph.node[0].input[0] = text
    proto.graph.node.append(N("Relu", ["y"], [text], name=text))


def _wrong_length(proto: ModelProto, text: str) -> None:
    rename(proto, "gamma", text)
    next(t for t in proto.graph.initializer if t.name == text).raw_data = b"\0"


def _constant(proto: ModelProto, text: str) -> None:
    node = N("Constant", [], ["k"], value=TensorProto(name=text, data_type=TensorProto.FLOAT, dims=[4, 1, 1]))
    proto.graph.node.extend([node, N("Mul", ["y", "k"], ["z"])])


def _epsilon(proto: ModelProto, text: str) -> None:
    proto.graph.node[1].attribute.add(name="epsilon", ref_attr_name=text, doc_string=text)


PLACES: dict[str, Callable[[ModelProto, str], object]] = {
    "node": lambda proto, text: setattr(proto.graph.node[1], "name", text),
    "value": lambda proto, text: rename(proto, "c", text),
    "input": lambda proto, text: rename(proto, "x", text),
    "output": lambda proto, text: rename(proto, "y", text),
    "weight": lambda proto, text: rename(proto, "w", text),
    "absent value": lambda proto, text: proto.graph.node[1].input.__setitem__(0, text),
    "symbol": lambda proto, text: setattr(proto.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", text),
    "attribute": lambda proto, text: proto.graph.node[0].attribute.add(name=text, type=3, s=text.encode()),
    "auto_pad": lambda proto, text: proto.graph.node[0].attribute.add(name="auto_pad", type=3, s=text.encode()),
    "value_info": lambda proto, text: proto.graph.value_info.add(name=text),
    "operator": _operator, "function": _function, "branch": _branch, "external": _external, "texts": _texts,
    "annotations": _annotations, "cycle": _cycle, "wrong length": _wrong_length, "constant": _constant,
    "epsilon": _epsilon,
}  # fmt: skip


def placed(place: str, text: str) -> bytes:
    """A foldable model, or one that is refused, with `text` in this place."""
    proto = conv_bn((4, 3, 1, 1), pads=[1, 1, 1, 1])
    PLACES[place](proto, text)
    return proto.SerializeToString()


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    """Control characters, ANSI escapes, HTML, path separators, bidirectional marks, and 100,000 letters."""
    cases = {f"{place} nasty": placed(place, NASTY) for place in PLACES}
    cases |= {f"{place} long": placed(place, LONG) for place in PLACES}
    for command in ("fold", "json"):
        ends = ends_well(cases, tmp_path / command, (command,))
        assert {0, 2} == {end.code for end in ends.values()}
        shown = [end.out + end.err for end in ends.values()]
        assert not any(odd in text for text in shown for odd in "\u202e\u2066\u2028\ufeff")
        if command == "json":
            assert all(json.loads(end.out)["command"] == "inspect" for end in ends.values() if not end.code)
        else:
            assert max(map(len, shown)) < 10_000


def test_names_that_are_no_text_never_crash(tmp_path: Path) -> None:
    """A lone surrogate and bytes that are no UTF-8, in every place that holds text."""
    cases = {place: placed(place, MARK).replace(MARK.encode(), BROKEN) for place in PLACES}
    assert all(BROKEN in data for data in cases.values())
    ends = ends_well(cases, tmp_path / "run")
    refused = {"node", "value", "input", "output", "weight", "operator", "branch", "function", "cycle"}
    assert refused <= {place for place, end in ends.items() if end.code == 2}


@pytest.mark.parametrize("name", ["\x1b[31m.onnx", "a\nb.onnx", "<b>.onnx", "\u202exnno.onnx", "[red].onnx"])
def test_odd_names_of_files(name: str, tmp_path: Path, cli: Cli) -> None:
    """The model's own path is foreign too: in the heading, in the last line, and in errors."""
    source = tmp_path / name
    source.write_bytes(conv_bn((4, 3, 1, 1)).SerializeToString())
    (tmp_path / f"broken{name}").write_bytes(b"")
    for path, expected in ((source, 0), (tmp_path / f"broken{name}", 2)):
        code, out, err = cli("fold", path, "--no-verify")
        assert code == expected
        assert (out + err).replace("\n", "").isprintable()


def test_odd_names_in_a_verification(tmp_path: Path, cli: Cli) -> None:
    """Inputs, outputs and symbols that a comparison names are escaped as well, whether it runs or not."""
    for place in ("input", "output", "symbol", "value"):
        source = tmp_path / f"{place}.onnx"
        source.write_bytes(placed(place, NASTY.replace("\0", "")))
        code, out, err = cli("fold", source)
        assert code in (0, 3)
        assert (out + err).replace("\n", "").isprintable()
        assert bnfold.inspect(source).sites


def test_runtimes_print_nothing_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An error of onnxruntime that is no text is reported in the report, not on stdout by onnxruntime."""
    proto = conv_bn((4, 3, 1, 1))
    proto.graph.node[0].attribute.add(name=MARK, type=3, s=b"a")
    source = tmp_path / "model.onnx"
    source.write_bytes(proto.SerializeToString().replace(MARK.encode(), BROKEN))
    assert _run(["fold", str(source), "-q"]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("bnfold: error: could not verify")
    assert err.count("\n") == 1


def test_evaluators_warn_about_nothing(cli: Cli, tmp_path: Path) -> None:
    """A mean of nothing is NaN on both sides; the warning of numpy about it does not reach stderr."""
    proto = conv_bn((4, 3, 1, 1))
    proto.graph.initializer.append(tensor("none", np.zeros((0, 3))))
    proto.graph.node.append(N("ReduceMean", ["none"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1]))
    source = tmp_path / "model.onnx"
    source.write_bytes(proto.SerializeToString())
    code, out, err = cli("fold", source, "--provider", "reference")
    assert (code, err) == (0, "")
    assert "verified equal" in out
