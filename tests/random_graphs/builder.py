"""The growing graph: nodes, constants in all the forms that exporters write, and the shape of every value.

Shapes come from onnx's own inference, node by node, for one nominal size of the free dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    defs,
    helper,
    numpy_helper,
    shape_inference,
)

Array = np.ndarray[Any, Any]
IR_VERSIONS = {19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}  # 8 for all before


class Impossible(Exception):
    """This operator does not fit behind this value, or does not exist in this opset."""


@dataclass(frozen=True, slots=True)
class Value:
    """An activation: its name, its shape at the nominal size, and the axes that its feature maps lie along."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = (1,)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def maps(self) -> int:
        """Number of feature maps."""
        return prod(self.shape[axis] for axis in self.axes)

    @property
    def spatial(self) -> tuple[int, ...]:
        """The sizes behind batch and channel of a value that is laid out (N, C, ...)."""
        return self.shape[2:]


def need(*conditions: bool) -> None:
    """Give up on this operator unless all hold."""
    if not all(conditions):
        raise Impossible


class Builder:
    """Collects nodes, initializers, inputs and outputs; `planted` counts the affine maps put in."""

    def __init__(self, rng: np.random.Generator, opset: int, dtype: Any, free: str) -> None:
        self.rng = rng
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.free = free  # "", "batch" or "spatial": which dimensions callers may choose
        self.planted = 0
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.inputs: list[Value] = []
        self.outputs: list[str] = []
        self.values: list[Value] = []
        self._types: dict[str, TypeProto] = {}
        self._data: dict[str, TensorProto] = {}
        self.ir_version = IR_VERSIONS.get(opset, 8)
        self._imports = [helper.make_opsetid("", opset)]
        self._count = 0

    # Chance ---------------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[Any]) -> Any:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def attempt(self, make: Callable[..., Value], *args: Any, **options: Any) -> Value | None:
        """What `make` makes; None, and everything as it was, where that is impossible."""
        nodes, values, outputs, planted = len(self.nodes), len(self.values), len(self.outputs), self.planted
        initializers = dict(self.initializers)
        try:
            return make(self, *args, **options)
        except (Impossible, IndexError):  # or an axis that the value does not have
            del self.nodes[nodes:], self.values[values:], self.outputs[outputs:]
            self.initializers, self.planted = initializers, planted
            return None

    def maps(self, most: int) -> int:
        """A number of feature maps; often 4 or 8, which many operators can split."""
        return int(self.pick([4, 8])) if most >= 8 and self.chance(0.4) else self.whole(1, most)

    # Names, constants, nodes ----------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, shape: Sequence[int]) -> Value:
        """A new input of the model."""
        value = Value(self.name("x"), tuple(shape))
        self._know(value.name, self.dtype, shape)
        self.inputs.append(value)
        self.values.append(value)
        return value

    def const(self, values: Any, stem: str = "k") -> str:
        """A constant as it is: an initializer, or sometimes a Constant node. Floats get the graph's own type."""
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(self.dtype)
        name = self.name(stem)
        self._know(name, array.dtype, array.shape)
        tensor = numpy_helper.from_array(array, name)
        if array.size <= 16:
            self._data[name] = tensor
        if self.chance(0.15) and (self.opset >= 9 or array.dtype == self.dtype):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers[name] = array
        return name

    def computed(self, values: Array, stem: str = "k") -> str:
        """A constant that nodes compute from other constants; its numbers keep their signs and zeros."""
        form = self.pick(["reshape", "mul", "sqrt", "reciprocal", "identity", "unsqueeze"])
        if form == "reshape":
            flat = self.const(values.reshape(-1), stem)
            return self.node("Reshape", [flat, self.const(np.array(values.shape, np.int64))])[0].name
        if form == "mul":
            return self.node("Mul", [self.const(values / 2, stem), self.const(2.0)])[0].name
        if form == "sqrt" and (values > 0).all():
            shifted = self.node("Add", [self.const(values**2, stem), self.const(1e-3)])[0]
            return self.node("Sqrt", [shifted])[0].name
        if form == "reciprocal" and (values != 0).all():
            return self.node("Reciprocal", [self.const(1 / values, stem)])[0].name
        if form == "unsqueeze" and values.ndim > 1 and values.shape[0] == 1 and self.opset >= 13:
            return self.node("Unsqueeze", [self.const(values[0], stem), self.const(np.array([0]))])[0].name
        return self.node("Identity", [self.const(values, stem)])[0].name

    def node(
        self,
        op: str,
        inputs: Sequence["Value | str"],
        outputs: int = 1,
        along: Sequence[int] = (1,),
        **attributes: Any,
    ) -> list[Value]:
        """A new node and its outputs; their feature maps lie on the axes `along`."""
        names = [entry.name if isinstance(entry, Value) else entry for entry in inputs]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        made = [self.name("v") for _ in range(outputs)]
        named = {"name": self.name(op.lower())} if self.chance(0.9) else {}
        node = helper.make_node(op, names, made, **named, **attributes)
        types = {name: self._types[name] for name in names if name}
        data = {name: self._data[name] for name in names if name in self._data}
        try:
            found = shape_inference.infer_node_outputs(
                defs.get_schema(op, self.opset, ""), node, types, data,
                opset_imports=self._imports, ir_version=self.ir_version,
            )  # fmt: skip
        except (shape_inference.InferenceError, defs.SchemaError) as error:
            raise Impossible from error
        need(*(name in found for name in made))
        shapes = [tuple(d.dim_value for d in found[name].tensor_type.shape.dim) for name in made]
        need(*(all(size > 0 for size in shape) for shape in shapes))
        self.nodes.append(node)
        self._types.update(found)
        values = [Value(name, shape, tuple(along)) for name, shape in zip(made, shapes, strict=True)]
        self.values += values
        return values

    def one(self, op: str, inputs: Sequence["Value | str"], along: Sequence[int] = (1,), **attributes: Any) -> Value:
        """A new node with one output."""
        return self.node(op, inputs, 1, along, **attributes)[0]

    def raw(self, node: NodeProto, like: Value) -> Value:
        """A node that inference is not asked about; its output has the type and shape of `like`."""
        self.nodes.append(node)
        self._types[node.output[0]] = self._types[like.name]
        value = replace(like, name=node.output[0])
        self.values.append(value)
        return value

    def kind(self, value: Value) -> int:
        """The element type of a value."""
        return int(self._types[value.name].tensor_type.elem_type)

    def _know(self, name: str, dtype: Any, shape: Sequence[int]) -> None:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._types[name] = helper.make_tensor_type_proto(kind, list(shape))

    # Numbers --------------------------------------------------------------------------------------------------------

    def normal(self, shape: Sequence[int], fan_in: int = 1) -> Array:
        """Normal numbers that keep the scale of what they are multiplied with."""
        return self.rng.normal(size=tuple(shape)) / np.sqrt(fan_in)

    def factors(self, shape: Sequence[int], *, positive: bool) -> Array:
        """Factors of about one, some negative unless `positive`."""
        numbers = self.rng.uniform(0.5, 2, tuple(shape))
        return numbers if positive else numbers * self.rng.choice([-1, 1], tuple(shape), p=[0.3, 0.7])

    # The model ------------------------------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        """The graph as a model; every dimension as a number."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        inputs = [helper.make_tensor_value_info(v.name, kind, list(v.shape)) for v in self.inputs]
        outputs = [ValueInfoProto(name=name, type=self._types[name]) for name in self.outputs]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=self._imports, ir_version=self.ir_version)
