r"""The scopes of a model: the main graph or a function's body, and the bodies of If, Loop and Scan nested in it.

A name means what the innermost scope around it says that defines it, and the branches of an If may use one name for
two values. So that one index can hold them all, `open_scopes` marks every name that a nested body defines with the
number of its scope, and takes the marks away at the end:

    then_branch: y = Conv (x, W)     else_branch: y = Relu (x)      both: y <- the value of that branch
    then_branch: y\0scope:1 = Conv (x, W\0scope:1)                  else_branch: y\0scope:2 = Relu (x)

A body stays closed inside operators of other domains, whose semantics are not known. Where a body defines a name
again that is visible in it already (the spec forbids it, IR.md "Names Within a Graph", but runtimes take it), and
reads the outer value after a fold, its own value gets a fresh name.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from google.protobuf.message import Message
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

from bnfold.nodes import ONNX_DOMAINS, captures, label, may_nest, named_subgraphs, subgraphs
from bnfold.text import SCOPE_MARK, printable, unmarked

Body = GraphProto | FunctionProto
Table = dict[str, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """One body.

    Attributes:
        body: where its nodes, initializers and so on are.
        parent: the scope around it, by number; None for the outermost.
        op: the operator that it is inside of; "" for the outermost.
        place: where it is, for messages: "" for the main graph.
    """

    body: Body
    parent: int | None = None
    op: str = ""
    place: str = ""

    @property
    def is_function(self) -> bool:
        """Whether it is the body of a local function, which has no initializers."""
        return isinstance(self.body, FunctionProto)

    @property
    def inputs(self) -> list[ValueInfoProto]:
        """What the body is given; those of a function have no types."""
        if isinstance(self.body, FunctionProto):
            return [ValueInfoProto(name=name) for name in self.body.input]
        return list(self.body.input)

    @property
    def output_names(self) -> list[str]:
        """The names of what the body gives."""
        if isinstance(self.body, FunctionProto):
            return list(self.body.output)
        return [value.name for value in self.body.output]

    @property
    def declared(self) -> Iterator[ValueInfoProto]:
        """The values that the body declares a type for, but for its inputs."""
        yield from getattr(self.body, "value_info", ())  # functions have it since IR 10
        if isinstance(self.body, GraphProto):
            yield from self.body.output

    @property
    def initializers(self) -> Sequence[TensorProto]:
        """The initializers; functions have none."""
        return () if isinstance(self.body, FunctionProto) else self.body.initializer

    @property
    def given(self) -> Iterator[str]:
        """The names that the body defines other than by nodes."""
        yield from (value.name for value in self.inputs)
        yield from (tensor.name for tensor in self.initializers)
        yield from (tensor.values.name for tensor in self.sparse)

    @property
    def sparse(self) -> Sequence[SparseTensorProto]:
        """The sparse initializers."""
        return () if isinstance(self.body, FunctionProto) else self.body.sparse_initializer


@dataclass(slots=True)
class Scopes:
    """The open bodies of a graph or function, outermost first, and all nodes in them.

    Attributes:
        scopes: the bodies.
        nodes: their nodes; those of a body come before the node that it belongs to.
        homes: the scope of each node, by number; empty where there is only one.
        inside: for each node with open bodies, the nodes that are directly in them.
    """

    scopes: list[Scope]
    nodes: list[NodeProto]
    homes: list[int] = field(default_factory=list)
    inside: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def closed(cls, body: Body) -> "Scopes":
        """The body alone; what is nested in it stays closed."""
        return cls([Scope(body)], list(body.node))


@contextlib.contextmanager
def open_scopes(body: Body, place: str = "") -> Iterator[Scopes]:
    """The body and what is nested in it, with marked names as long as the block runs.

    Raises:
        RecursionError: nested deeper than Python can follow.
    """
    outer = list(body.node)
    nesting = [node for node in outer if may_nest(node)]
    if not nesting or any(
        SCOPE_MARK in name for node in nesting for graph in subgraphs(node) for name in _all(graph)
    ):
        yield Scopes([Scope(body, place=place)], outer)
        return
    opened = _Opening(Scopes([Scope(body, place=place)], []))
    try:
        opened.walk(outer, 0, [_defined(body)], [])
        yield opened.result
    finally:
        names = _clashes(opened.result) if opened.redefines else {}
        for node in list(body.node):
            for graph in subgraphs(node):
                _rename(graph, lambda name: names.get(name) or unmarked(name))


@dataclass(slots=True)
class _Opening:
    result: Scopes
    redefines: bool = False

    def walk(
        self, nodes: Iterable[NodeProto], scope: int, visible: list[AbstractSet[str]], tables: list[Table]
    ) -> list[int]:
        """List the nodes of a scope, and before each those of the bodies inside it; returns their indices."""
        here: list[int] = []
        for node in nodes:
            inside = self._bodies(node, scope, visible, tables) if may_nest(node) else None
            here.append(len(self.result.nodes))
            if inside is not None:
                self.result.inside[here[-1]] = inside
            self.result.nodes.append(node)
            self.result.homes.append(scope)
        return here

    def _bodies(
        self, node: NodeProto, scope: int, visible: list[AbstractSet[str]], tables: list[Table]
    ) -> list[int] | None:
        """List the nodes of the bodies inside `node`; None where they stay closed."""
        if node.domain not in ONNX_DOMAINS:
            for graph in subgraphs(node):
                _resolve(graph, tables)
            return None
        outside = self.result.scopes[scope].place
        listed: list[int] = []
        for name, graph in named_subgraphs(node):
            inner = len(self.result.scopes)
            place = ", ".join(filter(None, [f"{printable(name)} of {label(node)}", outside]))
            self.result.scopes.append(Scope(graph, scope, node.op_type, place))
            own = _defined(graph)
            self.redefines = self.redefines or any(name in names for name in own for names in visible)
            inside = [*tables, {name: f"{name}{SCOPE_MARK}{inner}" for name in own}]
            _rename_own(graph, functools.partial(_lookup, inside))
            listed += self.walk(list(graph.node), inner, [*visible, own], inside)
        return listed


def _defined(body: Body) -> frozenset[str]:
    """The names that a body defines."""
    return frozenset(set(Scope(body).given).union(*(node.output for node in body.node)) - {""})


def _clashes(scopes: Scopes) -> dict[str, str]:
    """Fresh names for what a body defines under a name by which it, or a body inside it, reads an outer value now."""
    taken = {unmarked(name) for scope in scopes.scopes for name in (*_defined(scope.body), *_read(scope.body))}
    found: dict[str, str] = {}
    for scope in scopes.scopes[1:]:
        own = _defined(scope.body)
        foreign = {unmarked(name) for name in _read(scope.body) if name not in own}
        for name in sorted(own):
            plain = unmarked(name)
            if plain in foreign and name != plain:
                count = 2
                while (fresh := f"{plain}_{count}") in taken:
                    count += 1
                taken.add(fresh)
                found[name] = fresh
    return found


def _read(body: Body) -> Iterator[str]:
    """The names that a body reads, and those inside it read from outside themselves."""
    yield from Scope(body).output_names
    for node in body.node:
        yield from filter(None, node.input)
        yield from captures(node)


def _lookup(tables: list[Table], name: str) -> str:
    for table in reversed(tables):
        if name in table:
            return table[name]
    return name


def _resolve(graph: GraphProto, tables: list[Table]) -> None:
    """Rename what a closed body reads from the scopes around it."""
    if not tables:
        return
    inside = [*tables, {name: name for name in _defined(graph)}]
    _rename_own(graph, functools.partial(_lookup, inside))
    for node in graph.node:
        for inner in subgraphs(node):
            _resolve(inner, inside)


def _rename(graph: GraphProto, change: Callable[[str], str]) -> None:
    """Change all names in a body and what is nested in it."""
    _rename_own(graph, change)
    for node in graph.node:
        for inner in subgraphs(node):
            _rename(inner, change)


def _rename_own(graph: GraphProto, change: Callable[[str], str]) -> None:
    for named in _named(graph):
        _change(named, "name", change)
    for annotation in graph.quantization_annotation:
        _change(annotation, "tensor_name", change)
        for entry in annotation.quant_parameter_tensor_names:
            _change(entry, "value", change)
    for node in graph.node:
        for held in node.device_configurations:
            for spec in held.sharding_spec:
                _change(spec, "tensor_name", change)
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and (new := change(name)) != name:
                    names[place] = new


def _change(message: Message, field: str, change: Callable[[str], str]) -> None:
    """Change a name; one that stays, or is absent, is not set again."""
    name = getattr(message, field)
    if name and (new := change(name)) != name:
        setattr(message, field, new)


def _named(graph: GraphProto) -> Iterator[ValueInfoProto | TensorProto]:
    for values in (graph.input, graph.output, graph.value_info):
        yield from values
    yield from graph.initializer
    yield from (tensor.values for tensor in graph.sparse_initializer)


def _all(graph: GraphProto) -> Iterator[str]:
    """Every name in a body and what is nested in it."""
    yield from (named.name for named in _named(graph))
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _all(inner)
