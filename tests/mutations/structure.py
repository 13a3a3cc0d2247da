"""Faults in the graph around a fold: readers, attributes, nodes that are lost, kept, or shared.

Each kind is a function of a rightly folded `Model` and one of its nodes; it changes the model and gives the value
that is then wrong, or raises `NotApplicable`.
"""

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, helper

from tests.mutations.arrays import need
from tests.mutations.build import Network
from tests.mutations.evaluate import attributes, values
from tests.mutations.model import Model
from tests.mutations.networks import right

NodeFault = Callable[[Network, Model, NodeProto, np.random.Generator], str]


def rewired(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """The node reads another value of the same shape, from before it."""
    found = {name: n.value for name, n in values(network.model, network.feeds).items()}
    earlier = []
    for other in model.graph.node:
        if other.name == node.name:
            break
        earlier.append(other.output[0])
    slots = [i for i, name in enumerate(node.input) if name in found]
    need(slots)
    slot = slots[int(rng.integers(len(slots)))]
    read = found[node.input[slot]]
    others = [
        name for name in earlier if name in found and name not in node.input and found[name].shape == read.shape
    ]
    need(others)
    node.input[slot] = others[int(rng.integers(len(others)))]
    return node.output[0]


def activation_dropped(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """What feeds an activation takes its place."""
    need(node.op_type in ("Relu", "Clip") and len(model.readers(node.input[0])) == 1)
    before = model.maker(node.input[0])
    need(before)
    before.output[0] = node.output[0]
    model.remove(node.name)
    return before.output[0]


def activation_exchanged(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """Relu becomes LeakyRelu."""
    need(node.op_type == "Relu")
    node.op_type = "LeakyRelu"
    return node.output[0]


def bounds_scaled(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """The upper bound of a Clip is another."""
    need(node.op_type == "Clip")
    top = values(network.model, network.feeds)[node.input[0]].value.max()
    bound = np.float32(min(6.0, top) * 0.9)  # so that some number is above it
    node.input[2] = model.put(f"{node.name}_high", np.asarray(bound))
    return node.output[0]


def skip_lost(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """An Add of two branches hands only one on."""
    need(node.op_type == "Add" and not any(t.name in node.input for t in model.graph.initializer))
    node.op_type = "Identity"
    del node.input[1:]
    return node.output[0]


def branches_reordered(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """The inputs of a Concat in another order."""
    need(node.op_type == "Concat")
    node.input[:] = reversed(node.input)
    return node.output[0]


def set_ints(node: NodeProto, name: str, numbers: list[int]) -> None:
    """Set an attribute that is a list of integers."""
    for entry in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(entry)
    node.attribute.append(helper.make_attribute(name, numbers))


def pads_moved(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """One location less of padding at the begin of an axis and one more at its end."""
    pads = list(attributes(node).get("pads", ()))
    need(any(pads))
    axis = int(rng.integers(2))
    set_ints(node, "pads", [p - (i == axis) + (i == axis + 2) for i, p in enumerate(pads)])
    return node.output[0]


def dilation_changed(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """Dilation 2 for 1, or 1 for 2, and the padding that goes with it."""
    need(node.op_type == "Conv" and any(attributes(node).get("pads", ())))
    wide = attributes(node).get("dilations", [1, 1])[0] == 2
    set_ints(node, "dilations", [1, 1] if wide else [2, 2])
    set_ints(node, "pads", [1] * 4 if wide else [2] * 4)
    return node.output[0]


def stride_changed(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """Stride 1 for 2, or 2 for 1; the shape changes."""
    need(node.op_type in ("Conv", "ConvTranspose"))
    set_ints(node, "strides", [1, 1] if attributes(node).get("strides", [1, 1])[0] == 2 else [2, 2])
    return node.output[0]


def transposed_flag(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """transB of a Gemm with a square weight turned over."""
    need(node.op_type == "Gemm" and len(set(model.held(node.input[1]).dims)) == 1)
    turned = 1 - attributes(node).get("transB", 0)
    for entry in [a for a in node.attribute if a.name == "transB"]:
        node.attribute.remove(entry)
    node.attribute.append(helper.make_attribute("transB", turned))
    return node.output[0]


def shared_overwritten(network: Network, model: Model, node: NodeProto, rng: np.random.Generator) -> str:
    """A weight that another node shared is overwritten, and that node reads the folded one."""
    need(node.op_type == "Conv" and node.input[1] == "shared")
    (folded,) = (n for n in model.graph.node if n.op_type == "Conv" and _reads_shared(network, n) and n != node)
    node.input[1] = folded.input[1]
    return node.output[0]


def _reads_shared(network: Network, node: NodeProto) -> bool:
    return any(n.name == node.name and "shared" in n.input for n in network.model.graph.node)


NODES: dict[str, NodeFault] = {
    "reader rewired": rewired,
    "activation dropped": activation_dropped,
    "activation exchanged": activation_exchanged,
    "bound of a Clip scaled": bounds_scaled,
    "skip connection lost": skip_lost,
    "branches of a Concat reordered": branches_reordered,
    "pads moved by one": pads_moved,
    "dilation changed by one": dilation_changed,
    "stride changed by one": stride_changed,
    "transB turned over": transposed_flag,
    "shared weight overwritten": shared_overwritten,
}


def by_node(fault: NodeFault) -> Callable[[Network, str, np.random.Generator], tuple]:
    """What makes a mutant of a fault at a node, by name: the folded model, and the value that is wrong."""

    def make(network: Network, place: str, rng: np.random.Generator) -> tuple:
        model = Model(right(network.name))
        value = fault(network, model, model.node(place), rng)
        return model.proto, _public(network, model, value)

    return make


def _public(network: Network, model: Model, value: str) -> str:
    """The value itself, or where only the folded model has it, the first behind it that the original has too."""
    shared = {node.output[0] for node in network.model.graph.node}
    while value not in shared:
        (reader,) = model.readers(value)
        value = reader.output[0]
    return value
