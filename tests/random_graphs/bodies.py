"""What a stretch of nodes becomes inside an If, a Loop, a Scan or a local function."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.random_graphs.builder import Array, Builder

DOMAIN = "local"
SHAPING = ("Resize", "Upsample", "Dropout", "Clip")  # their constants decide on more than numbers


@dataclass(slots=True)
class Nested:
    """What nesting adds to the model: functions, and inputs that choose a branch."""

    functions: list[FunctionProto] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


def free_names(nodes: Iterable[NodeProto]) -> list[str]:
    """The names that these nodes, and the graphs inside them, take from around them; each once."""
    made: set[str] = set()
    found: dict[str, None] = {}
    for node in nodes:
        read = [name for name in node.input if name]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                own = {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
                read += [name for name in free_names(attribute.g.node) if name not in own]
        found.update(dict.fromkeys(name for name in read if name not in made))
        made.update(node.output)
    return list(found)


class Body:
    """A stretch of nodes on its way into a body."""

    def __init__(
        self,
        b: Builder,
        made: Nested,
        nodes: Sequence[NodeProto],
        outputs: list[str],
        outside: tuple[list[NodeProto], ...],
    ) -> None:
        self.b = b
        self.made = made
        self.outputs = outputs
        self.inner = {name: b.name("n") for name in outputs}
        self.nodes = renamed(nodes, self.inner)
        self.outside = {*b.outputs, *(name for others in outside for name in free_names(others))}
        self.shaping = {n for node in self.nodes if node.op_type in SHAPING for n in node.input[1:]}

    def constants(self, *, shared: bool = False) -> list[str]:
        """Initializers that it reads; unless `shared`, only those that nobody else reads."""
        names = [name for name in free_names(self.nodes) if name in self.b.initializers]
        return [name for name in names if shared or name not in self.outside]

    def moved(self) -> dict[str, Array]:
        """Some of its own constants, which belong to it from now on; none where a file of IR 3 may come of it."""
        if self.b.opset <= 8:
            return {}
        return {name: self.b.initializers.pop(name) for name in self.constants() if self.b.chance(0.5)}

    def other(self, name: str, array: Array) -> Array:
        """Other numbers for the constant, of the same signs; whole numbers and what shapes depend on stay."""
        if array.dtype.kind != "f" or name in self.shaping:
            return array
        return np.asarray(array * self.b.rng.uniform(0.8, 1.25, array.shape), array.dtype)

    def declared(self, names: Iterable[str]) -> list[ValueInfoProto]:
        """Outputs of the body, by the outer name of each; with shapes where those do not depend on the caller."""
        return [self.value(self.inner[name], name) for name in names]

    def value(self, inner: str, like: str) -> ValueInfoProto:
        """A declaration of `inner` with the type of `like`."""
        value = ValueInfoProto(name=inner, type=self.b._types[like])
        if self.b.free or self.b.chance(0.3):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        return value

    def stacked(self, like: str, times: int) -> str:
        """A new name, for some values of the type of `like` along an axis before the others."""
        kind = self.b._types[like].tensor_type
        name = self.b.name("stack")
        shape = [times, *(dim.dim_value for dim in kind.shape.dim)]
        self.b._types[name] = helper.make_tensor_type_proto(kind.elem_type, shape)
        return name


def renamed(nodes: Sequence[NodeProto], names: dict[str, str]) -> list[NodeProto]:
    """Copies of the nodes, with other names for some values, in the graphs inside as well."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for node in copies:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inside = renamed(attribute.g.node, names)
                del attribute.g.node[:]
                attribute.g.node.extend(inside)
    return copies


def _graph(name: str, nodes: Sequence[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto],
           held: dict[str, Array] | None = None) -> GraphProto:  # fmt: skip
    tensors = [numpy_helper.from_array(array, key) for key, array in (held or {}).items()]
    return helper.make_graph(nodes, name, inputs, outputs, tensors)


# The operators ------------------------------------------------------------------------------------------------------


def branches(body: Body) -> list[NodeProto]:
    """Both branches are the stretch, with the same names and some other numbers; or the second is constants alone."""
    b = body.b
    held = body.moved()
    others = {name: body.other(name, array) for name, array in held.items()}
    if not body.made.flags or b.chance(0.5):
        body.made.flags.append(b.name("flag"))
    outputs = body.declared(body.outputs)
    graphs = [_graph("yes", body.nodes, [], outputs, held), _graph("no", body.nodes, [], outputs, others)]
    if not b.free and b.chance(0.5):
        graphs[1] = _graph("no", [_answer(body, name) for name in body.outputs], [], outputs)
    both = dict(zip(("then_branch", "else_branch"), graphs, strict=True))
    return [helper.make_node("If", [b.pick(body.made.flags)], body.outputs, name=b.name("if"), **both)]


def _answer(body: Body, name: str) -> NodeProto:
    """A Constant in place of a value."""
    kind = body.b._types[name].tensor_type
    numbers = body.b.normal([dim.dim_value for dim in kind.shape.dim])
    array = numbers.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return helper.make_node("Constant", [], [body.inner[name]], value=numpy_helper.from_array(array))


def loop(body: Body) -> list[NodeProto]:
    """Once or twice round; the results are stacked, and the last of them is taken."""
    b = body.b
    held = body.moved()
    times = b.whole(1, 2)
    names = [b.name("i"), b.name("on"), b.name("stay")]
    inputs = [helper.make_tensor_value_info(names[0], TensorProto.INT64, []),
              helper.make_tensor_value_info(names[1], TensorProto.BOOL, [])]  # fmt: skip
    stay = helper.make_tensor_value_info(names[2], TensorProto.BOOL, [])
    nodes = [helper.make_node("Identity", [names[1]], [names[2]]), *body.nodes]
    graph = _graph("body", nodes, inputs, [stay, *body.declared(body.outputs)], held)
    count, going = _constant(b, np.array(times)), _constant(b, np.array(True))  # noqa: FBT003 - a tensor's value
    stacked = [body.stacked(name, times) for name in body.outputs]
    node = helper.make_node("Loop", [count.output[0], going.output[0]], stacked, name=b.name("loop"), body=graph)
    return [count, going, node, *_unstacked(b, stacked, body.outputs, times - 1)]


def scan(body: Body) -> list[NodeProto]:
    """Along an axis of length one that is put before one of the values it reads."""
    b = body.b
    values = [name for name in free_names(body.nodes) if name in {v.name for v in (*b.inputs, *b.values)}]
    if not values:
        return branches(body)
    held = body.moved()
    value, inside = b.pick(values), b.name("slice")
    stacked = body.stacked(value, 1)
    graph = _graph("body", renamed(body.nodes, {value: inside}), [body.value(inside, value)],
                   body.declared(body.outputs), held)  # fmt: skip
    axis = [_constant(b, np.array([0]))] if b.opset >= 13 else []
    unsqueeze = helper.make_node("Unsqueeze", [value, *(node.output[0] for node in axis)], [stacked])
    if not axis:
        unsqueeze.attribute.append(helper.make_attribute("axes", [0]))
    results = [body.stacked(name, 1) for name in body.outputs]
    node = helper.make_node("Scan", [stacked], results, name=b.name("scan"), body=graph, num_scan_inputs=1)
    return [*axis, unsqueeze, node, *_unstacked(b, results, body.outputs, 0)]


def _constant(b: Builder, array: Array) -> NodeProto:
    return helper.make_node("Constant", [], [b.name("k")], value=numpy_helper.from_array(array))


def _unstacked(b: Builder, stacked: list[str], names: list[str], place: int) -> list[NodeProto]:
    index = _constant(b, np.array(place))
    pairs = zip(stacked, names, strict=True)
    return [index, *(helper.make_node("Gather", [one, index.output[0]], [name], axis=0) for one, name in pairs)]


def function(body: Body) -> list[NodeProto]:
    """A local function, called once or twice: the second time with some other numbers, for nobody."""
    b = body.b
    inside = [name for name in body.constants(shared=True) if b.chance(0.4)]
    held = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(b.initializers[n])) for n in inside]
    formals = [name for name in free_names(body.nodes) if name not in inside]
    for name in set(inside) & set(body.constants()):
        del b.initializers[name]
    name = b.name("part")
    given = _by_reference(b, body.nodes)
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid(DOMAIN, 1)]
    body.made.functions.append(
        helper.make_function(
            DOMAIN, name, formals, [body.inner[n] for n in body.outputs], [*held, *body.nodes], imports, [*given]
        )
    )
    calls = [helper.make_node(name, formals, body.outputs, domain=DOMAIN, name=b.name("call"), **given)]
    if b.chance(0.35):
        calls.append(_second_call(body, calls[0]))
    return calls


def _by_reference(b: Builder, nodes: list[NodeProto]) -> dict[str, float]:
    """The epsilon of a BatchNormalization becomes an attribute of the function; empty where there is none."""
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "BatchNormalization" and attribute.name == "epsilon" and b.chance(0.4):
                given = attribute.f
                attribute.ClearField("f")
                attribute.ref_attr_name = "epsilon"
                return {"epsilon": given}
    return {}


def _second_call(body: Body, call: NodeProto) -> NodeProto:
    b = body.b
    second = renamed([call], {name: b.name("v") for name in call.output})[0]
    second.name = b.name("call")
    for place, name in enumerate(second.input):
        if name in b.initializers and b.chance(0.6):
            changed = body.other(name, b.initializers[name])
            second.input[place] = b.name("k")
            b.initializers[second.input[place]] = changed
    return second
