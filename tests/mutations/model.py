"""A copy of a model to change."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper


class Model:
    """A copy of a model with its nodes and tensors by name."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = ModelProto.FromString(proto.SerializeToString())
        self.graph = self.proto.graph
        self._nodes = {node.name: node for node in self.graph.node}
        self._held = {t.name: t for t in self.graph.initializer}

    def node(self, name: str) -> NodeProto:
        """The node of that name."""
        return self._nodes[name]

    def held(self, name: str) -> TensorProto:
        """The initializer of that name."""
        return self._held[name]

    def array(self, name: str) -> np.ndarray:
        """The numbers of an initializer."""
        return numpy_helper.to_array(self.held(name))

    def put(self, name: str, array: np.ndarray) -> str:
        """Set an initializer, or make it."""
        if name not in self._held:
            self._held[name] = self.graph.initializer.add()
        self._held[name].CopyFrom(numpy_helper.from_array(array, name))
        return name

    def maker(self, value: str) -> NodeProto | None:
        """The node that makes a value."""
        return next((node for node in self.graph.node if value in node.output), None)

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in node.input]

    def place(self, name: str) -> int:
        """Where the node of that name stands."""
        return [node.name for node in self.graph.node].index(name)

    def remove(self, name: str) -> None:
        """Take a node out."""
        del self.graph.node[self.place(name)]
