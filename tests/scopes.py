"""Models with nested graphs and local functions, from short ONNX text, and the scopes that they consist of.

Beside ONNX's own syntax there are, in every scope,

    T                a type: float[2,4,6,6]
    w = K()          a constant of random numbers, of shape (4, 4, 1, 1) or `K(4,2,3,3)`: an initializer of the graph
                     that the line stands in, in a function a Constant node
    v = P(4)         the same, of positive numbers
    w = N()          like K, as a Constant node anywhere
    a = BN(c)        a BatchNormalization of 4 maps, or `BN <maps = 6> (c)`, with constants of its own, made alike
    fn f (x) => (y)  the head of a local function of opset 17

and `fork`, `loop` and `scan` for the operators that have graphs inside. At IR 3, where nested graphs hold no
initializers, all constants belong to the main graph and its inputs. The same name in two scopes: other numbers.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from tests.conftest import tensor

MACROS = ((r"\bT\b", "float[2,4,6,6]"), (r"\b([KNP])\(([\d,]+)\)", r"\1 <shape = [\2]> ()"),
          (r"\bfn ", '<domain: "local", opset_import: ["" : 17, "local" : 1]> '))  # fmt: skip
Keep = Callable[[TensorProto], list[NodeProto]]


# Text ---------------------------------------------------------------------------------------------------------------


def fork(then: str, other: str, *, out: str = "y", ends: Sequence[str] = ("a", "b"), when: str = "p") -> str:
    """`out` = If (`when`), of two branches whose outputs are `ends`."""
    yes, no = (f"() => (T {end}) {{ {text} }}" for end, text in zip(ends, (then, other), strict=True))
    return f"{out} = If ({when}) <then_branch = yes {yes}, else_branch = no {no}>"


def loop(body: str, *, out: str = "y", start: str = "x", held: str = "") -> str:
    """`out` = Loop, three times from `start`: `body` makes the carried value `v` into `a`."""
    return f"""n = Constant <value = int64 {{3}}> () go = Constant <value = bool {{1}}> ()
        {out} = Loop (n, go, {start}) <body = body (int64 i, bool on, T v) => (bool stay, T a) {held}
        {{ stay = Identity (on) {body} }}>"""


def scan(body: str, *, out: str = "y", over: str = "x") -> str:
    """`out` = Scan along the first axis of `over`: `body` makes the slice `v`, (4, 6, 6), into `a`."""
    return f"""{out} = Scan <num_scan_inputs = 1, body = body (float[4,6,6] v) => (float[4,6,6] a) {{ {body} }}>
        ({over})"""


def parse(text: str, *, ir: int = 8, opset: int = 17, x: str = "T x, bool p") -> ModelProto:
    """The model of these nodes, from `x` to `y`, and of the functions behind them; or of a whole graph."""
    for pattern, replacement in MACROS:
        text, x = (re.sub(pattern, replacement, part) for part in (text, x))
    nodes, *functions = re.split(r'(?=<domain: ")', text, maxsplit=1)
    if not nodes.lstrip().startswith("main"):
        nodes = f"main ({x}) => (float[2,4,6,6] y) {{ {nodes} }}"
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    proto = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]>{nodes}{''.join(functions)}")
    _fill_graph(proto, proto.graph, "")
    for function in proto.functions:
        _fill(proto, function.node, f"{function.name}:{function.overload}", _constant_node)
    _fit_outputs(proto)
    return proto


def _fit_outputs(proto: ModelProto) -> None:
    """Outputs that the text does not give a shape have none."""
    for value in proto.graph.output:
        if not value.type.HasField("tensor_type"):
            value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, None))


# Constants ----------------------------------------------------------------------------------------------------------


def _fill_graph(proto: ModelProto, graph: GraphProto, path: str) -> None:
    holder = graph if proto.ir_version >= 4 else proto.graph

    def keep(held: TensorProto) -> list[NodeProto]:
        holder.initializer.append(held)
        if proto.ir_version < 4:
            holder.input.append(helper.make_tensor_value_info(held.name, held.data_type, held.dims))
        return []

    _fill(proto, graph.node, path, keep)


def _constant_node(held: TensorProto) -> list[NodeProto]:
    return [helper.make_node("Constant", [], [held.name], value=held)]


def _fill(proto: ModelProto, nodes: Any, path: str, keep: Keep) -> None:
    """Expand K, P, N and BN in one list of nodes, and in the graphs inside."""
    made: list[NodeProto] = []
    for node in nodes:
        rng = np.random.default_rng(zlib.crc32(f"{path}/{node.output[0]}".encode()))
        if node.op_type in ("K", "N", "P") and not node.domain:
            shape = next((tuple(a.ints) for a in node.attribute), (4, 4, 1, 1))
            numbers = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            held = tensor(node.output[0], np.exp(numbers) if node.op_type == "P" else numbers)
            made += _constant_node(held) if node.op_type == "N" else keep(held)
            continue
        if node.op_type == "BN" and not node.domain:
            for held in _statistics(node, rng):
                made += keep(held)
        for place, (name, graph) in enumerate(inside(node)):
            _fill_graph(proto, graph, f"{path}/{node.output[0]}.{name}.{place}")
        made.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in made]
    del nodes[:]
    nodes.extend(copies)


def _statistics(node: NodeProto, rng: np.random.Generator) -> list[TensorProto]:
    """The node as a BatchNormalization, and its gamma, beta, mean, var."""
    maps = next((a.i for a in node.attribute if a.name == "maps"), 4)
    kept = [a for a in node.attribute if a.name != "maps"]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.op_type = "BatchNormalization"
    gamma = rng.uniform(0.5, 2, maps) * rng.choice([-1, 1], maps)
    values = (gamma, rng.normal(size=maps), rng.normal(size=maps), rng.uniform(0.3, 3, maps))
    held = [tensor(f"{node.output[0]}_{n}", v) for n, v in zip("gbmv", values, strict=True)]
    node.input.extend(t.name for t in held)
    return held


# Scopes -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scope:
    """A graph or function body. `path` names it by the places of the nodes with graphs inside on the way to it."""

    path: tuple[str, ...]
    body: GraphProto | FunctionProto
    parent: "Scope | None" = None

    @property
    def nodes(self) -> list[NodeProto]:
        """Its own nodes, not those deeper."""
        return list(self.body.node)

    @property
    def initializers(self) -> dict[str, TensorProto]:
        """Its own initializers, by name; a function has none."""
        return {t.name: t for t in self.body.initializer} if isinstance(self.body, GraphProto) else {}

    @property
    def inputs(self) -> list[str]:
        """Names of what is passed in."""
        return [v if isinstance(v, str) else v.name for v in self.body.input]

    @property
    def outputs(self) -> list[str]:
        """Names of what is passed out."""
        return [v if isinstance(v, str) else v.name for v in self.body.output]

    @property
    def constants(self) -> dict[str, TensorProto]:
        """Initializers and the tensors of Constant nodes."""
        made = {n.output[0]: n.attribute[0].t for n in self.nodes if (n.domain, n.op_type) == ("", "Constant")}
        return {**self.initializers, **made}

    @property
    def names(self) -> set[str]:
        """Names that mean something of this scope's own."""
        return {*self.inputs, *self.initializers, *(name for node in self.nodes for name in node.output)}


def inside(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs directly inside a node, with the name of their attribute."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def scopes(proto: ModelProto) -> Iterator[Scope]:
    """The main graph, every function, and what lies inside them; outer ones first."""
    yield from _and_deeper(Scope(("",), proto.graph))
    for function in proto.functions:
        yield from _and_deeper(Scope((f"{function.domain}.{function.name}:{function.overload}",), function))


def _and_deeper(scope: Scope) -> Iterator[Scope]:
    yield scope
    holders = [node for node in scope.nodes if any(inside(node))]
    for place, node in enumerate(holders):
        for number, (name, graph) in enumerate(inside(node)):
            yield from _and_deeper(Scope((*scope.path, f"{place}.{name}.{number}"), graph, scope))


def layout(proto: ModelProto) -> str:
    """All operators but Constant: `Relu If[Conv | Neg]; f: Conv`."""
    parts = [_operators(proto.graph.node)]
    parts += [f"{f.name}{':' * bool(f.overload)}{f.overload}: {_operators(f.node)}" for f in proto.functions]
    return "; ".join(parts)


def _operators(nodes: Any) -> str:
    shown = []
    for node in nodes:
        graphs = " | ".join(_operators(graph.node) for _, graph in inside(node))
        if (node.domain, node.op_type) != ("", "Constant"):
            shown.append(f"{node.op_type}[{graphs}]" if any(inside(node)) else node.op_type)
    return " ".join(shown)
