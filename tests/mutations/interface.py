"""Faults in what a model shows: its inputs and outputs, by name, order, type and shape. No value inside is wrong."""

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.mutations.arrays import need
from tests.mutations.build import Network
from tests.mutations.model import Model
from tests.mutations.networks import right


def _last(model: Model) -> tuple:
    """The first output of the model and the node that makes it."""
    value = model.graph.output[0]
    return value, model.maker(value.name)


def outputs_reordered(network: Network, model: Model) -> None:
    """Two outputs of the same shape change places."""
    need(len(model.graph.output) > 1)
    first, second, *rest = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([second, first, *rest])


def numbers_exchanged(network: Network, model: Model) -> None:
    """Two outputs keep their names and exchange their numbers."""
    need(len(model.graph.output) > 1)
    names = [value.name for value in model.graph.output]
    makers = [model.maker(name) for name in names]
    need(not model.readers(names[0]) and not model.readers(names[1]))
    makers[0].output[0], makers[1].output[0] = names[1], names[0]


def output_renamed(network: Network, model: Model) -> None:
    """An output gets another name."""
    value, node = _last(model)
    need(not model.readers(value.name))
    node.output[0] = value.name = f"{value.name}_renamed"


def output_missing(network: Network, model: Model) -> None:
    """An output is lost."""
    need(len(model.graph.output) > 1)
    del model.graph.output[1:]


def output_more(network: Network, model: Model) -> None:
    """A value from inside is an output as well."""
    kind = model.graph.output[0].type.tensor_type.elem_type
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[0].output[0], kind, None))


def output_type(network: Network, model: Model) -> None:
    """An output in another floating-point type."""
    value, node = _last(model)
    need(not model.readers(value.name))
    kind = value.type.tensor_type
    kind.elem_type = TensorProto.FLOAT16 if kind.elem_type == TensorProto.FLOAT else TensorProto.FLOAT
    node.output[0] = f"{value.name}_kept"
    model.graph.node.append(
        helper.make_node("Cast", [node.output[0]], [value.name], name="other_type", to=kind.elem_type)
    )


def output_shape(network: Network, model: Model) -> None:
    """An output with its first two axes exchanged."""
    value, node = _last(model)
    need(not model.readers(value.name))
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
    order = [1, 0, *range(2, len(dims))]
    need(dims[0] != dims[1])
    value.CopyFrom(
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, [dims[i] for i in order])
    )
    node.output[0] = f"{value.name}_kept"
    model.graph.node.append(
        helper.make_node("Transpose", [node.output[0]], [value.name], name="other_shape", perm=order)
    )


def input_frozen(network: Network, model: Model) -> None:
    """A model input that has a stored default is an input no more."""
    need(len(model.graph.input) > 1)
    del model.graph.input[1:]


def input_renamed(network: Network, model: Model) -> None:
    """The input gets another name."""
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "renamed"


INTERFACES: dict[str, Callable[[Network, Model], None]] = {
    "outputs reordered": outputs_reordered,
    "outputs exchanged": numbers_exchanged,
    "output renamed": output_renamed,
    "output missing": output_missing,
    "another output": output_more,
    "output of another type": output_type,
    "output of another shape": output_shape,
    "stored input frozen": input_frozen,
    "input renamed": input_renamed,
}


def by_interface(
    fault: Callable[[Network, Model], None],
) -> Callable[[Network, str, np.random.Generator], tuple[ModelProto, None]]:
    """What makes a mutant of a fault in the interface: the folded model, and no value."""

    def make(network: Network, place: str, rng: np.random.Generator) -> tuple[ModelProto, None]:
        model = Model(right(network.name))
        fault(network, model)
        return model.proto, None

    return make
