"""Changes that put parts of a graph into other scopes: branches, loops, local functions."""

from collections.abc import Callable
from random import Random

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from tools.fuzzing.tree import CannotChange, fresh, graphs, names, pick

DOMAIN = "fuzz.local"


def into_branch(random: Random, model: ModelProto) -> None:
    """A few nodes become the branch of an If with a constant condition; the other branch is a copy or an Identity."""
    graph = pick(random, graphs(model))
    start, nodes = _some(random, graph)
    made = _outside(nodes)
    inner = {name: fresh(random) for name in made}
    body = [_renamed(node, inner) for node in nodes]
    then = helper.make_graph(body, fresh(random), [], [ValueInfoProto(name=inner[name]) for name in made])
    other = GraphProto()
    other.CopyFrom(then)
    if random.random() < 0.5 and len(made) == 1 and nodes[0].input and nodes[0].input[0]:
        del other.node[:]
        other.node.append(helper.make_node("Identity", [nodes[0].input[0]], [inner[made[0]]]))
    flag = helper.make_tensor(fresh(random), TensorProto.BOOL, [], [random.random() < 0.5])
    model.graph.initializer.append(flag)
    node = helper.make_node("If", [flag.name], made, name=fresh(random))
    node.attribute.add(name="then_branch", type=5).g.CopyFrom(then)
    node.attribute.add(name="else_branch", type=5).g.CopyFrom(other)
    _replace(graph.node, start, len(nodes), node)
    if random.random() < 0.4:  # constants of the branch move into it
        _take_constants(random, model.graph, node)


def into_loop(random: Random, model: ModelProto) -> None:
    """A node becomes the body of a Loop that runs once, its first input carried."""
    graph = pick(random, graphs(model))
    start, nodes = _some(random, graph, most=1)
    node = nodes[0]
    if not node.input or not node.input[0] or len(node.output) != 1:
        raise CannotChange
    inner = {node.input[0]: fresh(random), node.output[0]: fresh(random)}
    body = _renamed(node, inner)
    body.input[0] = inner[node.input[0]]
    step, going, on = fresh(random), fresh(random), fresh(random)
    loop = helper.make_graph(
        [helper.make_node("Identity", [going], [on]), body],
        fresh(random),
        [helper.make_tensor_value_info(step, TensorProto.INT64, []),
         helper.make_tensor_value_info(going, TensorProto.BOOL, []), ValueInfoProto(name=body.input[0])],
        [helper.make_tensor_value_info(on, TensorProto.BOOL, []), ValueInfoProto(name=body.output[0])],
    )  # fmt: skip
    trips = helper.make_tensor(fresh(random), TensorProto.INT64, [], [1])
    model.graph.initializer.append(trips)
    made = helper.make_node("Loop", [trips.name, "", node.input[0]], list(node.output), name=fresh(random))
    made.attribute.add(name="body", type=5).g.CopyFrom(loop)
    _replace(graph.node, start, 1, made)


def into_function(random: Random, model: ModelProto) -> None:
    """A few nodes become a local function; constants are arguments, or Constant nodes inside."""
    graph = model.graph
    start, nodes = _some(random, graph)
    held = {t.name: t for t in graph.initializer}
    read = list(dict.fromkeys(n for node in nodes for n in node.input if n))
    own = {name for node in nodes for name in node.output}
    inside = [name for name in read if name in held and random.random() < 0.5]
    arguments = [name for name in read if name not in own and name not in inside]
    constants = [helper.make_node("Constant", [], [name], value=held[name]) for name in inside]
    made = _outside(nodes)
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import]
    name = fresh(random, "F")
    bodies = [_renamed(node, {}) for node in nodes]
    model.functions.append(helper.make_function(DOMAIN, name, arguments, made, [*constants, *bodies], imports))
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    _replace(graph.node, start, len(nodes), helper.make_node(name, arguments, made, domain=DOMAIN))


def call_again(random: Random, model: ModelProto) -> None:
    """A function is called once more: by the main graph, by another function, or by itself."""
    function = pick(random, model.functions)
    made = [fresh(random) for _ in function.output]
    if random.random() < 0.6:
        inputs = [pick(random, names(model)) for _ in function.input]
        model.graph.node.append(helper.make_node(function.name, inputs, made, domain=function.domain))
        return
    other = pick(random, model.functions)
    inputs = [pick(random, list(other.input) or [""]) for _ in function.input]
    other.node.append(helper.make_node(function.name, inputs, made, domain=function.domain))


def refer(random: Random, model: ModelProto) -> None:
    """An attribute inside a function is a parameter of the function."""
    function = pick(random, model.functions)
    node = pick(random, (node for node in function.node if node.op_type in ("BatchNormalization", "Conv", "Gemm")))
    name = "epsilon" if node.op_type == "BatchNormalization" else "alpha"
    if name not in function.attribute:
        function.attribute.append(name)
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.add(name=name, type=1, ref_attr_name=name)
    for call in model.graph.node:
        if call.op_type == function.name and random.random() < 0.8:
            call.attribute.add(name=name, type=1, f=random.choice((1e-5, 1e-3, 0.1)))


def shadow(random: Random, model: ModelProto) -> None:
    """A value of a nested graph is called like one outside; or an outer value is read inside."""
    inner = pick(random, graphs(model)[1:])
    node = pick(random, (node for node in inner.node if node.input and node.output))
    name = pick(random, names(model))
    if random.random() < 0.5:
        node.input[random.randrange(len(node.input))] = name
    elif random.random() < 0.5:
        node.output[0] = name
    else:
        held = helper.make_tensor(name, TensorProto.FLOAT, [1], [2.0])
        inner.initializer.append(held)


# How ----------------------------------------------------------------------------------------------------------------


def _some(random: Random, graph: GraphProto, most: int = 3) -> tuple[int, list[NodeProto]]:
    """Copies of a few nodes that stand one after the other."""
    if not graph.node or len(graph.node) > 500:
        raise CannotChange
    start = random.randrange(len(graph.node))
    nodes = []
    for node in graph.node[start : start + random.randint(1, most)]:
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    if sum(node.ByteSize() for node in nodes) > 1 << 20:
        raise CannotChange
    return start, nodes


def _outside(nodes: list[NodeProto]) -> list[str]:
    """The outputs of these nodes; more than are needed does not hurt."""
    made = list(dict.fromkeys(name for node in nodes for name in node.output if name))
    if not made:
        raise CannotChange
    return made


def _renamed(node: NodeProto, names_: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names_.get(name, name) for name in copy.input]
    copy.output[:] = [names_.get(name, name) for name in copy.output]
    return copy


def _replace(nodes: list[NodeProto], start: int, count: int, node: NodeProto) -> None:
    del nodes[start : start + count]
    nodes.insert(start, node)


def _take_constants(random: Random, graph: GraphProto, node: NodeProto) -> None:
    read = {name for entry in node.attribute for inner in entry.g.node for name in inner.input}
    for held in list(graph.initializer):
        if held.name in read and random.random() < 0.7:
            for entry in node.attribute:
                entry.g.initializer.append(held)


Change = Callable[[Random, ModelProto], None]
CHANGES: dict[Change, int] = {into_branch: 4, into_loop: 2, into_function: 4, call_again: 2, refer: 1, shadow: 2}
