"""Provenance: each node says what was folded into it, truly, once, and at no other's cost."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold.provenance import KEY, MOST_SITES, digest
from tests.conftest import MODELS, Cli, batchnorm_parameters, conv_bn, initializer, model, ops, tensor
from tests.folding import assert_same_values, check, graph

PAIR = "c = Conv (x, w)\ny = BN <maps = 4> (c)"


def noted(proto: ModelProto, name: str) -> Any:
    """What the node of that name says of itself; None where it says nothing."""
    node = next(node for node in proto.graph.node if node.name == name)
    values = [entry.value for entry in node.metadata_props if entry.key == KEY]
    assert len(values) <= 1
    return json.loads(values[0]) if values else None


def noted_in_model(proto: ModelProto) -> Any:
    """The same of a model below IR 10."""
    values = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    assert len(values) <= 1
    return json.loads(values[0]) if values else None


def by_hand(array: Any) -> str:
    """The digest as the documentation says it is made."""
    head = f"{array.dtype}[{','.join(str(size) for size in array.shape)}]"
    return hashlib.sha256(head.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]


def fold(proto: ModelProto, **options: Any) -> ModelProto:
    """Folded, not verified."""
    return bnfold.fold(proto, verify=False, **options).model


def with_bn(proto: ModelProto, prefix: str) -> ModelProto:
    """The same model with one more BatchNormalization at its end, called `prefix`; its output is `prefix`."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    last = copy.graph.output[0].name
    names = [prefix + name for name in ("gamma", "beta", "mean", "var")]
    copy.graph.node.append(helper.make_node("BatchNormalization", [last, *names], [prefix], name=prefix))
    copy.graph.initializer.extend(batchnorm_parameters(4, 7, prefix=prefix))
    copy.graph.output[0].name = prefix
    return copy


def test_a_batchnorm_is_noted_with_its_digests() -> None:
    """At IR 10: one entry at the Conv, with names, direction, epsilon, and digests that anybody can compute."""
    proto = conv_bn(ir_version=10, bn={"epsilon": 0.25})
    found = fold(proto)
    parameters = {name: by_hand(initializer(proto, name)) for name in ("gamma", "beta", "mean", "var")}
    site = {"nodes": [["BatchNormalization", "bn"]], "output": "y", "kind": "BatchNormalization", "direction": "pull"}
    expected = {"bnfold": bnfold.__version__, "sites": [{**site, **parameters, "epsilon": 0.25}]}
    assert noted(found, "conv") == expected
    assert noted_in_model(found) is None
    found.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [2, 4, 7, 7]))
    onnx.checker.check_model(found, full_check=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_digest_tells_types_and_shapes_apart(dtype: Any) -> None:
    """The same numbers in another type or shape are another digest; the byte order of the machine does not count."""
    array = np.arange(6, dtype=dtype)
    assert digest(array) == by_hand(array) == digest(array[::-1][::-1])
    others = {digest(array.reshape(2, 3)), digest(array.astype(np.int64)), digest(-array)}
    assert len({digest(array), *others}) == 4


def test_below_ir_10_the_model_says_it() -> None:
    """Nodes have no metadata there: one entry in the model's, by the output of the node; the rest of it stays."""
    proto = conv_bn(ir_version=8)
    proto.metadata_props.add(key="k", value="v")
    found = fold(proto)
    assert [entry.key for entry in found.metadata_props] == ["k", KEY]
    assert not found.graph.node[0].metadata_props
    told = noted_in_model(found)
    assert told["bnfold"] == bnfold.__version__
    assert list(told["nodes"]) == ["y"]
    assert [site["nodes"] for site in told["nodes"]["y"]] == [[["BatchNormalization", "bn"]]]
    found.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [2, 4, 7, 7]))
    onnx.checker.check_model(found, full_check=True)


def test_a_chain_is_noted_with_what_it_comes_to() -> None:
    """A chain has the names of its ends and the digests of the combined scale and shift, in float64."""
    proto = graph("c = Conv (x, w)\nm = Mul (c, s)\ny = Add (m, t)", ir_version=10, w=(4, 4, 3, 3), s=(4, 1, 1),
                  t=(4, 1, 1))  # fmt: skip
    proto.graph.node[0].name, proto.graph.node[1].name = "conv", "mul"
    (site,) = noted(fold(proto), "conv")["sites"]
    assert site["nodes"] == [["Mul", "mul"], ["Add", ""]]
    assert (site["kind"], site["output"], site["direction"]) == ("chain", "y", "pull")
    scale, shift = (initializer(proto, name).reshape(4).astype(np.float64) for name in "st")
    assert (site["scale"], site["shift"]) == (by_hand(scale), by_hand(shift))
    assert "epsilon" not in site


def test_two_sites_of_one_run_are_both_listed() -> None:
    """Two BatchNormalizations in a row go into one Conv: both, in the order in which they went."""
    proto = with_bn(conv_bn(ir_version=10), "more")
    sites = noted(fold(proto), "conv")["sites"]
    assert [site["nodes"][0][1] for site in sites] == ["bn", "more"]


@pytest.mark.parametrize("ir_version", [8, 10])
def test_a_second_fold_replaces(ir_version: int) -> None:
    """What is folded into the same node later takes the place of the entry; it does not pile up."""
    once = fold(conv_bn(ir_version=ir_version))
    twice = fold(with_bn(once, "more"))
    if ir_version < 10:
        told = noted_in_model(twice)["nodes"]
        assert list(told) == ["more"]
        sites = told["more"]
    else:
        sites = noted(twice, "conv")["sites"]
    assert [site["nodes"][0][1] for site in sites] == ["more"]


def test_entries_of_untouched_nodes_stay_and_of_lost_ones_go() -> None:
    """Below IR 10: a second fold keeps what the model says of other nodes, word for word, and drops lost nodes."""
    proto = conv_bn(ir_version=8)
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["other"], name="relu"))
    proto.graph.output.append(helper.make_tensor_value_info("other", 1, None))
    text = '{"bnfold":"0.0","nodes":{"other":[{"a":1.5}],"gone":[{}],"c":[{}]}}'
    proto.metadata_props.add(key=KEY, value=text)
    told = noted_in_model(fold(proto))
    assert list(told["nodes"]) == ["other", "y"]
    assert told["nodes"]["other"] == [{"a": 1.5}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes":7}', '{"nodes":{"y":' + "[" * 100_000, "9" * 5000])
def test_foreign_text_under_our_key_is_replaced(text: str) -> None:
    """Whatever stands there, the fold works and says what it did."""
    proto = conv_bn(ir_version=8)
    proto.metadata_props.add(key=KEY, value=text)
    assert list(noted_in_model(fold(proto))["nodes"]) == ["y"]


def test_several_absorbers_each_say_it() -> None:
    """A BatchNormalization behind a Concat goes into both Convs, and both say so."""
    text = "a = Conv (x, v)\nb = Conv (x, w)\nc = Concat <axis = 1> (a, b)\ny = BN <maps = 4> (c)"
    proto = graph(text, ir_version=10, v=(2, 4, 1, 1), w=(2, 4, 1, 1))
    found = check(proto).model
    told = [entry.value for node in found.graph.node for entry in node.metadata_props]
    assert [node.op_type for node in found.graph.node if node.metadata_props] == ["Conv", "Conv"]
    assert told[0] == told[1]


def test_what_went_into_a_node_that_goes_goes_on_with_it() -> None:
    """Two Convs, each with its BatchNormalization, are merged into one: that one lists all three sites."""
    text = """a = Conv <pads = [1, 1, 1, 1]> (x, v)\nn = BN <maps = 4> (a)\nb = Conv (x, w)\nm = BN <maps = 4> (b)
              y = Add (n, m)"""
    proto = graph(text, ir_version=10, v=(4, 4, 3, 3), w=(4, 4, 1, 1))
    found = check(proto, folded=3, merge_branches=True, nodes="Conv").model
    (entry,) = found.graph.node[0].metadata_props
    sites = json.loads(entry.value)["sites"]
    assert [(site["output"], site["kind"]) for site in sites] == [
        ("n", "BatchNormalization"), ("m", "BatchNormalization"), ("m", "branch"),
    ]  # fmt: skip


def test_a_copy_says_it_and_the_original_does_not() -> None:
    """--clone-shared: the map went into the copy of the Conv, which alone says so."""
    proto = graph(PAIR + "\nz = Relu (c)", outputs=("y", "z"), ir_version=10, w=(4, 4, 1, 1))
    found = check(proto, clone_shared=True).model
    convs = [node for node in found.graph.node if node.op_type == "Conv"]
    assert {node.output[0]: len(node.metadata_props) for node in convs} == {"c": 0, "y": 1}


def test_a_copy_says_what_went_into_the_original_before() -> None:
    """The copy of a Conv that took a BatchNormalization in has that one in its weights too."""
    text = "c = Conv (x, w)\nn = BN <maps = 4> (c)\ny = BN <maps = 4> (n)\nz = Relu (n)"
    found = check(graph(text, outputs=("y", "z"), ir_version=10, w=(4, 4, 1, 1)), folded=2, clone_shared=True).model
    told = {node.output[0]: json.loads(node.metadata_props[0].value)["sites"] for node in found.graph.node[:2]}
    assert {made: [site["output"] for site in sites] for made, sites in told.items()} == {"n": ["n"], "y": ["n", "y"]}


def test_a_matmul_that_becomes_a_gemm_says_it() -> None:
    """The node that is left has another operator by then."""
    proto = graph("c = MatMul (x, w)\ny = BN <maps = 4> (c)", (2, 4), ir_version=10, w=(4, 4))
    found = check(proto, nodes="Gemm").model
    assert [entry.key for entry in found.graph.node[0].metadata_props] == [KEY]


def test_metadata_that_was_there_stays() -> None:
    """A Conv keeps its own entries, in their order; those of the BatchNormalization go with it."""
    proto = conv_bn(ir_version=10)
    for node in proto.graph.node:
        node.metadata_props.add(key=f"{node.name}.key", value="v")
    found = fold(proto)
    assert [entry.key for entry in found.graph.node[0].metadata_props] == ["conv.key", KEY]


def test_without_provenance_nothing_is_noted(tmp_path: Path, cli: Cli) -> None:
    """`provenance=False` and `--no-provenance` give what folding alone gives."""
    source = tmp_path / "m.onnx"
    onnx.save(conv_bn(ir_version=10), source)
    assert cli("fold", source, "-o", tmp_path / "a.onnx", "--no-provenance")[0] == 0
    assert cli("fold", source, "-o", tmp_path / "b.onnx")[0] == 0
    plain, told = (onnx.load(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert plain == fold(conv_bn(ir_version=10), provenance=False)
    assert not any(node.metadata_props for node in plain.graph.node)
    del told.graph.node[0].metadata_props[:]
    assert plain == told


@pytest.mark.parametrize("ir_version", [3, 7, 9, 10, 12])
def test_fold_of_fold_is_the_same_bytes(ir_version: int, tmp_path: Path) -> None:
    """Nothing is added where nothing folds; the same fold gives the same bytes."""
    proto = conv_bn(ir_version=ir_version, opset=8)
    if ir_version < 4:
        proto.graph.input.extend(helper.make_tensor_value_info(t.name, 1, t.dims) for t in proto.graph.initializer)
    onnx.save(proto, tmp_path / "m.onnx")
    for name in ("a", "b"):
        assert bnfold.fold(tmp_path / "m.onnx", tmp_path / name, verify=False).folded
    assert not bnfold.fold(tmp_path / "a", tmp_path / "c", verify=False).folded
    first = (tmp_path / "a").read_bytes()
    assert KEY.encode() in first
    assert [(tmp_path / name).read_bytes() for name in "bc"] == [first, first]


def test_no_node_says_more_than_is_useful() -> None:
    """Names are cut, and of many sites in one node the rest is a number: notes cannot explode."""
    proto = conv_bn(ir_version=10)
    proto.graph.node[1].name = "n" * 5000
    for count in range(MOST_SITES + 3):
        proto = with_bn(proto, f"p{count}_")
    sites = noted(fold(proto), "conv")["sites"]
    assert len(sites) == MOST_SITES + 1
    assert sites[-1] == {"more": 4}
    assert max(len(site["nodes"][0][1]) for site in sites[:-1]) < 300


def test_foreign_names_are_json(tmp_path: Path) -> None:
    """Quotes, control characters and other scripts in names come back as they were."""
    proto = conv_bn(ir_version=10)
    proto.graph.node[1].name = name = 'a"\\\n\x1b[31m\u00e4\U0001f600'
    onnx.save(proto, tmp_path / "m.onnx")
    bnfold.fold(tmp_path / "m.onnx", tmp_path / "o.onnx", verify=False)
    assert noted(onnx.load(tmp_path / "o.onnx"), "conv")["sites"][0]["nodes"] == [["BatchNormalization", name]]


@pytest.mark.parametrize("stem", ["digits_resnet_dynamo", "repvgg", "keras_densenet121", "levit", "mobileone"])
def test_real_models_note_every_site(stem: str) -> None:
    """Each folded site is found at as many nodes as took it in, and nothing but the notes differs."""
    result = bnfold.fold(MODELS / f"{stem}.onnx", verify=False)
    proto = result.model
    if proto.ir_version >= 10:
        texts = [json.loads(e.value)["sites"] for n in proto.graph.node for e in n.metadata_props if e.key == KEY]
    else:
        texts = list(noted_in_model(proto)["nodes"].values())
    found = sorted(site["output"] for sites in texts for site in sites)
    expected = sorted(site.output for site in result.folded for _ in (site.into or "").split(", "))
    assert found == expected
    plain = fold(onnx.load(MODELS / f"{stem}.onnx"), provenance=False)
    assert ops(plain) == ops(proto)
    assert [numpy_helper.to_array(t).tobytes() for t in plain.graph.initializer] == [
        numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer
    ]


def test_the_model_with_notes_still_computes_the_same() -> None:
    """onnxruntime reads models with our entry, in both forms."""
    for ir_version in (8, 10):
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
        proto = with_bn(model(nodes, [tensor("w", np.ones((4, 3, 1, 1)))], ir_version=ir_version), "z")
        assert_same_values(proto, fold(proto))
