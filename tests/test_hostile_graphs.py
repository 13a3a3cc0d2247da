"""Graphs made to hurt: cycles, deep nesting, attributes of every wrong kind, chains and joins without end.

Each ends in exit 0, or in exit 2 with one line: in a process of bounded memory (see hostile_run).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

import bnfold
from bnfold.rules.table import RULES
from tests.conftest import batchnorm_parameters, model, tensor
from tests.hostile_run import HUGE, N, between, calling, ends_well, lying

# Attributes ---------------------------------------------------------------------------------------------------------


def _attributes(op: str) -> set[str]:
    """The names of the attributes that any version of the operator has."""
    schemas = (s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain)
    return {name for schema in schemas for name in schema.attributes} | {"axis", "broadcast"}


WRONG: dict[str, dict[str, Any]] = {
    "text": {"type": AttributeProto.STRING, "s": b"\xff\x1b[0m"},
    "nan": {"type": AttributeProto.FLOAT, "f": float("nan")},
    "large": {"type": AttributeProto.INT, "i": 1 << 62},
    "least": {"type": AttributeProto.INT, "i": -(1 << 63)},
    "list": {"type": AttributeProto.INTS, "ints": [HUGE, -HUGE, 0, 1 << 62, -1, 3, 2, 1]},
    "none": {"type": AttributeProto.INTS},
    "graph": {"type": AttributeProto.GRAPH, "g": GraphProto(name="g", node=[NodeProto(op_type="If", input=["c"])])},
    "tensor": {"type": AttributeProto.TENSOR, "t": lying("t", [HUGE])},
    "untyped": {"i": 7, "floats": [1.0], "strings": [b"\xff"]},
    "reference": {"ref_attr_name": "outer", "type": AttributeProto.INT},
}


def test_attributes_of_every_wrong_kind(tmp_path: Path) -> None:
    """Each attribute of each operator with a rule, as a text, a graph, a huge number, a reference: no crash."""
    sources = ("BatchNormalization", "Constant", "Cast", "ConstantOfShape", "Shape", "If", "Loop", "Scan")
    held = (tensor("k", np.ones(4)), tensor("i", [0, 1, 2, 3], np.int64))
    cases: dict[str, bytes] = {}
    for op in sorted({*RULES, *sources}):
        for count, name in enumerate(sorted(_attributes(op))):
            for kind in list(WRONG)[count % 7 :: 7]:  # a seventh of them each: the next ones have the others
                node = N(op, ["h", "i" if op in ("Reshape", "Gather", "Slice", "Pad") else "k"], ["o"])
                node.attribute.add(name=name, **WRONG[kind])
                cases[f"{op}.{name} {kind}"] = between(node, held=held).SerializeToString()
    ends = ends_well(cases, tmp_path / "run", ("inspect",))
    assert len(cases) > 200
    assert {0, 2} == {end.code for end in ends.values()}


# Structure ----------------------------------------------------------------------------------------------------------


def branch(*nodes: NodeProto, output: str) -> GraphProto:
    """The body of an If."""
    return helper.make_graph(list(nodes), "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def _function(name: str, *nodes: NodeProto) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    return helper.make_function("l", name, ["a"], ["b"], list(nodes), imports)


def _structures() -> Iterator[tuple[str, ModelProto, int]]:
    """Name, model, and the exit code."""
    relu = N("Relu", ["a"], ["b"])
    yield "cycle of three", between(N("Add", ["h", "q"], ["p"]), N("Relu", ["p"], ["o"]), N("Neg", ["o"], ["q"])), 2
    yield (
        "cycle of constants",
        between(N("Neg", ["q"], ["p"]), N("Neg", ["p"], ["q"]), N("Mul", ["h", "q"], ["o"])),
        2,
    )
    yield (
        "cycle through a branch",
        between(
            N(
                "If",
                ["c"],
                ["o"],
                then_branch=branch(N("Neg", ["n"], ["z"]), output="z"),
                else_branch=branch(N("Neg", ["h"], ["z"]), output="z"),
            ),
            held=(tensor("c", 1, np.bool_),),
        ),
        2,
    )
    yield "one name made twice", between(N("Relu", ["h"], ["o"]), N("Neg", ["h"], ["o"])), 2
    yield "one name twice in one node", between(N("Split", ["h"], ["o", "o"])), 2
    yield "a node makes an initializer", between(N("Relu", ["h"], ["gamma"]), N("Neg", ["h"], ["o"])), 2
    yield "two initializers of one name", between(N("Relu", ["h"], ["o"]), held=(tensor("gamma", [1.0]),)), 2
    yield "read before it is made", between(N("Relu", ["p"], ["o"]), N("Neg", ["h"], ["p"])), 0
    yield "never made", between(N("Add", ["h", "absent"], ["o"])), 2
    yield "function calls itself", calling(_function("F0", N("F0", ["a"], ["b"], domain="l"))), 0
    yield (
        "functions call each other",
        calling(
            _function("F0", N("F1", ["a"], ["b"], domain="l")), _function("F1", N("F0", ["a"], ["b"], domain="l"))
        ),
        0,
    )
    deep = [_function(f"F{i}", N(f"F{i + 1}", ["a"], ["b"], domain="l")) for i in range(5000)]
    yield "5,000 functions deep", calling(*deep, _function("F5000", relu)), 0
    wide = [_function(f"F{i}", N(f"F{i + 1}", ["a"], ["m"], domain="l"), N(f"F{i + 1}", ["m"], ["b"], domain="l"))
            for i in range(60)]  # fmt: skip
    yield "2^60 calls", calling(*wide, _function("F60", relu)), 0
    yield "two functions of one name", calling(_function("F0", relu), _function("F0", N("Neg", ["a"], ["b"]))), 0
    yield "no such function", calling(), 0
    yield "an If without branches", between(N("If", ["h"], ["o"])), 0
    yield "graph in a Relu", between(N("Relu", ["h"], ["o"], body=branch(relu, output="b"))), 0


def test_structures_that_are_none(tmp_path: Path) -> None:
    """Cycles, names made twice, recursive functions: refused where the graph means nothing, else left alone."""
    cases = {name: (proto.SerializeToString(), code) for name, proto, code in _structures()}
    ends = ends_well({name: data for name, (data, _) in cases.items()}, tmp_path / "run", ("fold",))
    assert {name: end.code for name, end in ends.items()} == {name: code for name, (_, code) in cases.items()}


def _nested(depth: int) -> bytes:
    """A model with graphs inside graphs; built from the inside, as bytes, because protobuf will not."""

    def field(number: int, data: bytes) -> bytes:
        length, head = len(data), bytes([number << 3 | 2])
        while length > 0x7F:
            head += bytes([length & 0x7F | 0x80])
            length >>= 7
        return head + bytes([length]) + data

    graph = field(2, b"g")
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(2, b"o") + field(4, b"If") + field(5, attribute)) + field(2, b"g")
    return b"\x08\x08" + field(8, field(1, b"") + b"\x10\x11") + field(7, graph)


def test_graphs_inside_graphs(tmp_path: Path) -> None:
    """10,000 graphs deep: protobuf reads about thirty, the rest is refused in one line."""
    cases = {str(depth): _nested(depth) for depth in (10, 20, 29, 33, 50, 100, 10_000)}
    ends = ends_well(cases, tmp_path / "run", ("fold",))
    assert [ends[depth].code for depth in ("10", "20", "50", "100", "10000")] == [0, 0, 2, 2, 2]


def test_long_chains(tmp_path: Path) -> None:
    """10,000 operators in a row, and as many sums of a value with itself: nothing here recurses."""
    cases = {}
    for op in ("Identity", "Neg", "Concat"):
        names = ["h", *(f"v{i}" for i in range(9_999)), "o"]
        extra = {"axis": 1} if op == "Concat" else {}
        reads = 2 if op in ("Add", "Concat") else 1
        chain = [N(op, [v] * reads, [made], **extra) for v, made in itertools.pairwise(names)]
        cases[op] = between(*chain).SerializeToString()
    ends = ends_well(cases, tmp_path / "run", ("fold",))
    assert {name for name, end in ends.items() if end.code} == set()


PARAMETERS = ["gamma", "beta", "mean", "var"]


def _wide(kind: str, count: int) -> ModelProto:
    """Many sites that all see the same wide operator."""
    maps = [N("Mul", ["h", "k"], [f"m{i}"]) for i in range(count)]
    convs = [N("Conv", ["h", "w"], [f"m{i}"]) for i in range(count)]
    made = [f"m{i}" for i in range(count)]
    normalised = [N("BatchNormalization", ["s", *PARAMETERS], [f"b{i}"]) for i in range(count)]
    joined = [f"b{i}" for i in range(count)]
    nodes = {
        "maps into one Concat": [*maps, N("Concat", made, ["o"], axis=1)],
        "maps into one Sum": [*maps, N("Sum", made, ["o"])],
        "maps behind one Sum": [*convs, N("Sum", made, ["s"]), *normalised, N("Sum", joined, ["o"])],
        "pieces of one Split": [
            N("Split", ["h"], made, axis=1), *[N("Mul", [v, "two"], [f"b{i}"]) for i, v in enumerate(made)],
            N("Concat", joined, ["o"], axis=1)],
    }[kind]  # fmt: skip
    return between(*nodes, held=(tensor("k", np.full((4, 1, 1), 2.0)), tensor("two", [2.0])))


@pytest.mark.parametrize(
    "kind", ["maps into one Concat", "maps into one Sum", "maps behind one Sum", "pieces of one Split"]
)
def test_many_sites_at_one_wide_operator(kind: str) -> None:
    """A map at each of 300 branches: looking at all branches from all of them would take for ever, so nobody does."""
    report = bnfold.inspect(_wide(kind, 300), sources="all").report
    assert len(report.left) >= 300
    assert any("more than 256 values" in site.message for site in report.left)


def test_fifty_thousand_nodes(tmp_path: Path) -> None:
    """A model of 50,000 nodes, a Conv and a BatchNormalization after every hundred: all 500 fold."""
    nodes: list[NodeProto] = []
    value = "x"
    for i in range(500):
        for j in range(98):
            nodes.append(N("Relu" if j % 2 else "Identity", [value], [f"v{i}_{j}"]))
            value = f"v{i}_{j}"
        nodes += [N("Conv", [value, "w"], [f"c{i}"]), N("BatchNormalization", [f"c{i}", *PARAMETERS], [f"n{i}"])]
        value = f"n{i}"
    nodes.append(N("Relu", [value], ["y"]))
    proto = model(nodes, [tensor("w", np.ones((4, 4, 1, 1))), *batchnorm_parameters(4)], (1, 4, 4, 4))
    assert len(proto.graph.node) > 50_000 - 1
    end = ends_well({"model": proto.SerializeToString()}, tmp_path / "run", ("fold",))["model"]
    assert "500 of 500 BatchNormalizations folded" in end.out
