"""Facts about a graph: who produces a value, who uses it, what is constant, which opset, which names are free.

Built in one pass, each question answered in constant time. Nothing here changes the model; `edits.Editor`
does, and keeps these facts true while it works.
"""

import functools
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto

from bnfold.constants import Constant, Constants
from bnfold.contexts import Context, Contexts
from bnfold.depths import sorted_depths
from bnfold.errors import InvalidModelError
from bnfold.nodes import (
    captures,
    label,
    may_nest,
    names_in_annotations,
    names_in_training,
    other_names,
    standard_domain,
    types_in,
)
from bnfold.scopes import Scopes
from bnfold.shapes import Shapes
from bnfold.text import printable, unmarked

HALF = frozenset([TensorProto.FLOAT16, TensorProto.BFLOAT16])


class Use(NamedTuple):
    """One place where a value is read: input `slot` of node `node`, or, with slot -1, inside its nested graphs."""

    node: int
    slot: int


class GraphFacts(Contexts):
    """Facts about a graph and the bodies nested in it. Nodes are named by their index in `nodes`.

    `scopes` are the bodies to look into; without it, only the main graph. `freeze_inputs` says that initializers
    which are also graph inputs count as constants all the same; `lifted` are the numbers of initializers, by name,
    that were left in the file.

    Attributes:
        nodes: the nodes, in the order of the file; those of a nested body before the node it belongs to.
        homes: the scope of each node, by its number in `scopes`.
        order: their indices in a topological order that does not depend on the order of the file: by depth, then by
            the name of what they make.
        removed: the indices of those that are no more.
        functions: the local functions, by domain and name.
        shapes: the shapes of values.

    Raises:
        InvalidModelError: a value has two producers or none, or the graph has a cycle.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path | None = None,
        *,
        freeze_inputs: bool = False,
        lifted: Mapping[str, memoryview] | None = None,
        scopes: Scopes | None = None,
        functions: AbstractSet[tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        opened = scopes or Scopes.closed(model.graph)
        self.model = model
        self.freeze_inputs = freeze_inputs
        self.scopes = opened.scopes
        self.folder = folder
        self.nodes = opened.nodes
        self.homes = opened.homes or [0] * len(opened.nodes)
        self._inside = opened.inside
        self.opsets = {standard_domain(entry.domain): entry.version for entry in self._opset_imports()}
        self.inputs: dict[str, ValueInfoProto] = {v.name: v for scope in self.scopes for v in scope.inputs}
        self.outputs = {name for scope in self.scopes for name in scope.output_names}
        self.constants = Constants(self, lifted or {})
        self.sparse = {tensor.values.name for scope in self.scopes for tensor in scope.sparse}
        self.pinned: set[str] = set()
        self.repin(lambda _: False)
        self.producers: dict[str, int] = {}
        self.uses: dict[str, dict[Use, None]] = {}  # an ordered set: removing one of many takes no time
        self.removed: set[int] = set()
        self.shapes = Shapes(self)
        self._contexts.append((self.constants, self.shapes))
        self._node_names: set[str] | None = None
        self._value_homes: dict[str, int] = {}
        self._late: dict[int, float] = {}
        self.functions = functions or {(standard_domain(f.domain), f.name) for f in model.functions}
        self._counts: dict[str, int] = {}
        self._copies: dict[str, str] = {}
        self._positions: dict[int, int] = {}
        self._ops: dict[int, str] = {}
        self.order: Sequence[int] = ()
        self._index_nodes()
        self._check_outputs()
        self._taken = {*self.producers, *self.uses, *self.inputs, *self.constants.stored, *self.sparse}
        self._taken.update(self.outputs, other_names(model))
        if len(self.scopes) > 1:
            self._taken.update([unmarked(name) for name in self._taken])
            self._value_homes = {name: home for home, scope in enumerate(self.scopes) for name in scope.given}

    def _opset_imports(self) -> Iterable[OperatorSetIdProto]:
        body = self.scopes[0].body
        return body.opset_import if isinstance(body, FunctionProto) else self.model.opset_import

    @property
    def in_function(self) -> bool:
        """Whether this is the body of a local function."""
        return self.scopes[0].is_function

    def home(self, value: str) -> int:
        """The scope that defines `value`, by number."""
        producer = self.producers.get(value)
        return self._value_homes.get(value, 0) if producer is None else self.homes[producer]

    def where(self, value: str) -> str:
        """The body that `value` is an output or input of, for messages."""
        puts = next((scope for scope in self.scopes if value in self.outputs and value in scope.output_names), None)
        return (puts or self.scopes[self.home(value)]).place or "the model"

    def is_call(self, node: int) -> bool:
        """Whether the node calls a local function."""
        proto = self.nodes[node]
        return (standard_domain(proto.domain), proto.op_type) in self.functions

    def _new_context(self, bound: dict[str, Constant]) -> Context:
        constants = Constants(self, {}, bound)
        constants.index(self.order)
        return constants, Shapes(self)

    def is_constant_input(self, name: str) -> bool:
        """Whether `name` is an input of the function that is constant in every call."""
        return self.in_function and name in self.inputs and name in self.constants.stored

    @functools.cached_property
    def has_half(self) -> bool:
        """Whether anything in the model is in float16 or bfloat16: a tensor, a declared value, what a Cast makes."""
        return not HALF.isdisjoint(types_in(self.model))

    def repin(self, is_gone: Callable[[str], bool]) -> None:
        """Find the tensors that must stay: named by a training step, or by an annotation of what is not gone."""
        self.pinned = set() if self.in_function else set(names_in_training(self.model))
        for scope in self.scopes:
            if isinstance(scope.body, GraphProto):
                self.pinned.update(names_in_annotations(scope.body, is_gone))

    def is_open(self, node: int) -> bool:
        """Whether the bodies inside the node are among `scopes`."""
        return node in self._inside

    def settles(self, name: str, home: int) -> None:
        """Note that the new constant `name` lies in scope `home`."""
        self._value_homes[name] = home

    def _index_nodes(self) -> None:
        known = self.inputs.keys() | self.constants.stored.keys() | self.sparse | {""}
        in_order = True
        depths = [0] * len(self.nodes)
        for i, node in enumerate(self.nodes):
            reads = self._index_reads(i, node)
            makers = [self.producers[name] for name in reads if name in self.producers]
            below = [*makers, *self._inside[i]] if i in self._inside else makers
            depths[i] = 1 + max([depths[maker] for maker in below], default=0)
            in_order = in_order and (
                len(makers) == len(reads) or all(n in known or n in self.producers for n in reads)
            )
            for value in filter(None, node.output):
                if value in self.producers or value in known:
                    raise InvalidModelError(
                        f"{printable(value)!r} is produced twice, the second time by {label(node)}"
                    )
                self.producers[value] = i
        if not in_order:
            all_reads = [[*node.input, *self._captured(i, node)] for i, node in enumerate(self.nodes)]
            depths = sorted_depths(self.nodes, all_reads, self.producers, known, self._inside)
        keys = [(depth, next(iter(node.output), "")) for depth, node in zip(depths, self.nodes, strict=True)]
        self.order = sorted(range(len(keys)), key=keys.__getitem__)
        self._positions = {index: place for place, index in enumerate(self.order)}
        self.constants.index(self.order)

    def _check_outputs(self) -> None:
        known = self.producers.keys() | self.inputs.keys() | self.constants.stored.keys() | self.sparse
        for name in sorted(self.outputs):
            if name not in known:
                raise InvalidModelError(f"nothing produces {printable(name)!r}, an output of the model")

    def _index_reads(self, i: int, node: NodeProto) -> list[str]:
        """Note what the node reads, its closed graphs included; returns the names."""
        own = list(node.input)
        for slot, value in enumerate(own):
            if value:
                self.uses.setdefault(value, {})[Use(i, slot)] = None
        captured = self._captured(i, node)
        for value in captured:
            self.uses.setdefault(value, {})[Use(i, -1)] = None
        return own + captured

    def _captured(self, i: int, node: NodeProto) -> list[str]:
        """What the graphs inside the node take from outside, unless their nodes are listed themselves."""
        return sorted(captures(node)) if may_nest(node) and i not in self._inside else []

    def live(self) -> Iterator[int]:
        """The nodes that are there now, in topological order."""
        late = sorted(self._late, key=self._late.__getitem__)
        order = heapq.merge(self.order, late, key=self.position) if late else self.order
        return (index for index in order if index not in self.removed)

    def only_input(self, node: int) -> str:
        """The first input of a node that must have one.

        Raises:
            InvalidModelError: it has none.
        """
        proto = self.nodes[node]
        if not proto.input or not proto.input[0]:
            raise InvalidModelError(f"{label(proto)} has no input")
        return proto.input[0]

    def op(self, node: int) -> str:
        """The operator's name where it is a standard one; `domain::name` for all others."""
        op = self._ops.get(node)
        if op is None:
            proto = self.nodes[node]
            domain = standard_domain(proto.domain)
            standard = domain == "" and ("", proto.op_type) not in self.functions
            op = self._ops[node] = proto.op_type if standard else f"{domain}::{proto.op_type}"
        return op

    def op_changed(self, node: int) -> None:
        """Note that the node is another operator now."""
        self._ops.pop(node, None)

    def opset(self) -> int:
        """The version of the standard operators; 1 where the model does not say (IR < 3)."""
        return int(self.opsets.get("", 1))

    def producer(self, value: str) -> int | None:
        """The node that makes `value`; None for inputs and initializers."""
        return self.producers.get(value)

    def users(self, value: str) -> Collection[Use]:
        """Every place that reads `value`, nested graphs included."""
        return self.uses.get(value, {})

    def is_free(self, value: str) -> bool:
        """Nothing reads `value`: no node, no graph output, no annotation, no training step."""
        return not (self.users(value) or value in self.outputs or value in self.pinned)

    def through_identity(self, value: str) -> str:
        """The value that `value` is a copy of, through any number of Identity nodes; often itself."""
        path: list[str] = []
        while (node := self.producer(value)) is not None and self.op(node) == "Identity":
            path.append(value)
            value = self._copies.get(value) or self.only_input(node)
        if path and self.constants.computes(self.producers[path[-1]]):
            self._copies |= dict.fromkeys(path, value)  # so that a long chain is walked once
        return value

    def position(self, node: int) -> float:
        """Where the node stands in `order`."""
        if node in self._late:
            return self._late[node]
        return self._positions[node]

    def add_node(self, node: NodeProto, behind: int) -> int:
        """Take note of a new node, which comes directly behind node `behind`; returns its index."""
        self.nodes.append(node)
        self.homes.append(self.homes[behind])
        index = len(self.nodes) - 1
        self._late[index] = self.position(behind) + 0.5
        return index

    def fresh_node_name(self, hint: str) -> str:
        """A name like `hint` that no node has; taken from now on."""
        if self._node_names is None:
            self._node_names = {node.name for node in self.nodes}
        name, count = hint, 1
        while name in self._node_names:
            count += 1
            name = f"{hint}_{count}"
        self._node_names.add(name)
        return name

    def fresh(self, hint: str) -> str:
        """A name like `hint` that nothing in the model uses; taken from now on."""
        hint = unmarked(hint)
        name, count = hint, self._counts.get(hint, 1)
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._counts[hint] = count
        self._taken.add(name)
        return name
