"""Local functions: their bodies are folded where every call agrees.

    h = local.ConvBn <eps = 0.001> (x, w1, g1, b1, m1, v1)        y = local.ConvBn <eps = 0.001> (h, w2, g2, ...)

    local.ConvBn (x, w, gamma, beta, mean, var) => (y) {          local.ConvBn (x, w_folded, w_bias) => (y) {
        c = Conv (x, w)                                               y = Conv (x, w_folded, w_bias)
        y = BatchNormalization <epsilon : float = @eps> (...)     }
    }

A body is planned once for each call, with the constants that this call passes. Only if all plans do the same, with
other numbers, they are carried out together: each call then passes its own numbers, and what no body reads any more
is no longer passed. Constants inside a body stay inside. An attribute by reference counts if all calls give it one
value. Source: IR.md, "Functions".
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onnx import AttributeProto, FunctionProto, NodeProto

from bnfold.constants import Constant
from bnfold.document import Document
from bnfold.editor import Editor
from bnfold.function_editor import Call, FunctionEditor
from bnfold.graph import GraphFacts
from bnfold.nodes import ONNX_DOMAINS, label, may_nest, nested_nodes, standard_domain
from bnfold.scopes import open_scopes
from bnfold.text import printable

MOST_CALLS = 1024  # of one function, counted through the functions that call it
Key = tuple[str, str, str]


def key_of_function(function: FunctionProto) -> Key:
    """What calls name it by: domain, name, overload."""
    return standard_domain(function.domain), function.name, getattr(function, "overload", "")


def key_of_call(node: NodeProto) -> Key:
    """The function that a node would call."""
    return standard_domain(node.domain), node.op_type, getattr(node, "overload", "")


@dataclass(slots=True)
class Functions:
    """The local functions of a document that can be looked into, callers before callees.

    Attributes:
        editors: one for each of their bodies.
        closed: those that cannot: recursive ones, or called too often.
    """

    editors: list[FunctionEditor] = field(default_factory=list)
    closed: list[FunctionProto] = field(default_factory=list)


@contextlib.contextmanager
def open_functions(document: Document, main: Editor) -> Iterator[Functions]:
    """Facts and editor of every local function, for as long as the block runs."""
    found = Functions()
    model = document.proto
    with contextlib.ExitStack() as stack:
        order = _callers_first(list(model.functions), found.closed)
        index = _Calls({key_of_function(function) for function in order}, main)
        for function in order:
            calls = index.of(function)
            if sum(call.contexts for call in calls or ()) > MOST_CALLS:
                found.closed.append(function)
                continue
            stack.enter_context(_resolved(function, calls))
            place = f"function '{printable(f'{function.domain}::{function.name}')}'"
            scopes = stack.enter_context(open_scopes(function, place))
            facts = GraphFacts(
                model,
                document.folder,
                freeze_inputs=main.facts.freeze_inputs,
                scopes=scopes,
                functions=main.facts.functions,
            )
            _bind(facts, function, calls)
            found.editors.append(FunctionEditor(facts, main, tuple(calls or ())))
            index.add(found.editors[-1])
        yield found


def _callers_first(functions: list[FunctionProto], closed: list[FunctionProto]) -> list[FunctionProto]:
    """In an order in which callers come before what they call; recursive ones, and what they call, go to `closed`."""
    by_key = {key_of_function(function): function for function in functions}
    callees = {key: _called(function) & by_key.keys() for key, function in by_key.items()}
    waiting = dict.fromkeys(by_key, 0)
    for names in callees.values():
        for name in names:
            waiting[name] += 1
    order = [key for key, count in waiting.items() if not count]
    for key in order:  # grows while it is walked
        for name in sorted(callees[key]):
            waiting[name] -= 1
            if not waiting[name]:
                order.append(name)
    closed += [function for key, function in by_key.items() if waiting[key]]
    return [by_key[key] for key in order]


def _called(function: FunctionProto) -> set[Key]:
    return {key_of_call(node) for nodes in (function.node, nested_nodes(function.node)) for node in nodes}


class _Calls:
    """Every call of every function, found as the bodies are looked into, callers first."""

    def __init__(self, keys: AbstractSet[Key], main: Editor) -> None:
        self._keys = keys
        self._standard = any(domain == "" for domain, _, _ in keys)
        self._found: dict[Key, list[Call]] = {}
        self._elsewhere: set[Key] = set()  # functions with calls where nobody looks
        for info in main.facts.model.training_info:
            for graph in (info.initialization, info.algorithm):
                for nodes in (graph.node, nested_nodes(graph.node)):
                    self._elsewhere.update(key_of_call(node) for node in nodes)
        self.add(main)

    def add(self, editor: Editor) -> None:
        """Note the calls in one body."""
        facts = editor.facts
        for index, node in enumerate(facts.nodes):
            if (node.domain not in ONNX_DOMAINS or self._standard) and key_of_call(node) in self._keys:
                self._found.setdefault(key_of_call(node), []).append(Call(editor, index))
            if may_nest(node) and not facts.is_open(index):
                self._elsewhere.update(key_of_call(inner) for inner in nested_nodes([node]))

    def of(self, function: FunctionProto) -> list[Call] | None:
        """The calls of a function; None where one lies where it cannot be looked into."""
        key = key_of_function(function)
        return None if key in self._elsewhere else self._found.get(key, [])


def _bind(facts: GraphFacts, function: FunctionProto, calls: list[Call] | None) -> None:
    """Let the facts know which inputs of the function are constant in every call."""
    unbound = dict.fromkeys(function.input, "which is called from where bnfold does not look")
    bound: list[dict[str, Constant]] = []
    for call in calls or ():
        bound += [
            {name: value for name, value in zip(function.input, arguments, strict=False) if value}
            for arguments in call.constants()
        ]
    for slot, name in enumerate(function.input if calls else ()):
        missing = next((call for call in calls or () if not call.passes_constant(slot)), None)
        if missing is None:
            unbound.pop(name, None)
        else:
            unbound[name] = f"for which {label(missing.node)} passes no constant"
    facts.bind([{n: c for n, c in one.items() if n not in unbound} for one in bound] or [{}], unbound)


@contextlib.contextmanager
def _resolved(function: FunctionProto, calls: list[Call] | None) -> Iterator[None]:
    """The body with its attributes by reference replaced by what all calls give, for as long as the block runs."""
    nodes = [node for nodes in (function.node, nested_nodes(function.node)) for node in nodes]
    held = [_Reference(node, function, calls) for node in nodes if any(a.ref_attr_name for a in node.attribute)]
    held = [reference for reference in held if reference.given]
    try:
        yield
    finally:
        for reference in held:
            reference.restore()


class _Reference:
    """A node with attributes by reference that stand for one value.

    Attributes:
        given: the values, by attribute; None for one that no call gives, which then is absent.
    """

    def __init__(self, node: NodeProto, function: FunctionProto, calls: list[Call] | None) -> None:
        self.node = node
        self.op = node.op_type
        self.before = [_copy(entry) for entry in node.attribute]
        self.given: dict[str, AttributeProto | None] = {}
        for entry in self.before:
            values = _values(entry, function, calls) if entry.ref_attr_name else []
            if values and all(value == values[0] for value in values):
                self.given[entry.name] = values[0]
        after = [self.given.get(entry.name, entry) for entry in self.before]
        _set(node, [entry for entry in after if entry is not None])

    def restore(self) -> None:
        """Put the references back, but for attributes that an edit has changed since."""
        if self.node.op_type != self.op:
            return
        now = {entry.name: _copy(entry) for entry in self.node.attribute}
        after: list[AttributeProto] = []
        for entry in self.before:
            current = now.pop(entry.name, None)
            untouched = entry.name in self.given and current == self.given[entry.name]
            after += [entry] if untouched else [current] if current is not None else []
        _set(self.node, [*after, *now.values()])


def _values(entry: AttributeProto, function: FunctionProto, calls: list[Call] | None) -> list[AttributeProto | None]:
    """What each call gives for a reference, under the name of the attribute; [] where that cannot be told."""
    values: list[AttributeProto | None] = []
    for call in calls or ():
        given = [*call.node.attribute, *function.attribute_proto]
        value = next((_copy(a) for a in given if a.name == entry.ref_attr_name), None)
        if value is not None and (value.ref_attr_name or value.type != entry.type):
            return []
        if value is not None:
            value.name = entry.name
        values.append(value)
    return values


def _copy(entry: AttributeProto) -> AttributeProto:
    copy = AttributeProto()
    copy.CopyFrom(entry)
    return copy


def _set(node: NodeProto, attributes: list[AttributeProto]) -> None:
    del node.attribute[:]
    node.attribute.extend(attributes)
