"""Building networks: nodes, weights, statistics that fit what flows through, and a note of every site that can fold.

The builder computes every value in float64 while it goes, so that each BatchNormalization gets the mean and variance
that its input really has, as a trained one would, and numbers neither grow nor fade over forty layers.
"""

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.mutations.evaluate import Number, apply, known


@dataclass(frozen=True, slots=True)
class Site:
    """One fold that is right.

    Attributes:
        value: the value that the fold makes another way, and keeps.
        cores: names of the Conv, ConvTranspose, Gemm or MatMul nodes that take the maps in; several before a Concat.
        maps: names of the nodes that go: a BatchNormalization, or a chain of Mul, Add, Sub, Div.
        through: names of the nodes between cores and maps that stay.
        side: "behind": the maps follow the cores; "before": they come first.
        added: name of the Add that holds a MatMul's bias; empty where there is none.
    """

    value: str
    cores: tuple[str, ...]
    maps: tuple[str, ...]
    through: tuple[str, ...] = ()
    side: str = "behind"
    added: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A network that is not folded, its sites, and those folds that look possible but are wrong (`traps`)."""

    name: str
    model: ModelProto
    sites: tuple[Site, ...]
    traps: dict[str, Site] = field(default_factory=dict)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """Seeded normal inputs."""
        rng = np.random.default_rng(1)
        held = {t.name for t in self.model.graph.initializer}
        found = {}
        for value in self.model.graph.input:
            if value.name in held:
                continue
            kind = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found[value.name] = rng.normal(size=[d.dim_value for d in kind.shape.dim]).astype(dtype)
        return found


class Builder:
    """Collects nodes and tensors; `values` holds what flows, float64."""

    def __init__(self, shape: tuple[int, ...], *, dtype=np.float32, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype, self.shape = dtype, shape
        self.nodes, self.tensors, self.sites, self.traps = [], [], [], {}
        self.values: dict[str, Number] = {"x": known(self.rng.normal(size=shape).astype(dtype))}

    def tensor(self, name: str, array) -> str:
        """A constant of the network's type; its name."""
        held = numpy_helper.from_array(np.asarray(array, self.dtype), name)
        self.tensors.append(held)
        self.values[name] = known(numpy_helper.to_array(held))
        return name

    def node(self, op: str, inputs: list[str], **given) -> str:
        """A node, computed at once; the name of its output."""
        name = f"{op.lower()}{len(self.nodes)}"
        made = helper.make_node(op, inputs, [f"{name}_out"], name=name, **given)
        self.nodes.append(made)
        self.values[made.output[0]] = apply(made, [self.values[n] if n else None for n in inputs])
        return made.output[0]

    def last(self) -> str:
        """The name of the last node."""
        return self.nodes[-1].name

    def channels(self, value: str) -> int:
        """How many maps a value has."""
        return self.values[value].value.shape[1]

    def conv(self, x: str, maps: int, kernel: int = 3, *, bias: bool = False, group: int = 1, **given) -> str:
        """A Conv with padding that keeps the size, unless `pads` says otherwise; every fifth map is small."""
        given.setdefault("pads", [kernel // 2 * max(given.get("dilations", [1]))] * 4)
        weight = self.rng.normal(size=(maps, self.channels(x) // group, kernel, kernel))
        return self.node("Conv", [x, *self._weights(weight, 0, maps, bias=bias)], group=group, **given)

    def conv_transpose(self, x: str, maps: int, kernel: int, *, bias: bool = False, group: int = 1, **given) -> str:
        """A ConvTranspose."""
        weight = self.rng.normal(size=(self.channels(x), maps // group, kernel, kernel))
        return self.node("ConvTranspose", [x, *self._weights(weight, 1, maps, bias=bias)], group=group, **given)

    def _weights(self, weight: np.ndarray, axis: int, maps: int, *, bias: bool) -> list[str]:
        size = np.where(np.arange(weight.shape[axis]) % 5 == 3, 0.05, 1.0)
        weight = weight * np.expand_dims(size, tuple(i for i in range(weight.ndim) if i != axis))
        weight /= np.sqrt(weight.size / maps)
        name = f"w{len(self.nodes)}"
        names = [self.tensor(name, weight)]
        return names + ([self.tensor(f"{name}_bias", self.rng.normal(size=maps) / 2)] if bias else [])

    def batchnorm(self, x: str, *, epsilon: float = 1e-5) -> str:
        """A BatchNormalization with the statistics of its input; the first gamma is negative."""
        mean, var = self.statistics(x)
        maps, name = len(mean), f"bn{len(self.nodes)}"
        gamma = self.rng.uniform(0.5, 1.5, maps) * self.rng.choice([-1, 1, 1], maps)
        gamma[0] = -1.25
        held = (gamma, self.rng.normal(size=maps) / 2, mean, var)
        names = [self.tensor(f"{name}_{part}", array) for part, array in zip("gbmv", held, strict=True)]
        return self.node("BatchNormalization", [x, *names], epsilon=epsilon)

    def statistics(self, x: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every map, each a little off, as those of training are."""
        value = self.values[x].value
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        mean, var = value.mean(axis=axes), value.var(axis=axes)
        return mean + 0.1 * np.sqrt(var) * self.rng.normal(size=len(mean)), var * self.rng.uniform(
            0.8, 1.25, len(var)
        )

    def folded(self, x: str, *, epsilon: float = 1e-5) -> str:
        """A BatchNormalization behind the node that was made last: a site."""
        core = self.last()
        value = self.batchnorm(x, epsilon=epsilon)
        self.sites.append(Site(value, (core,), (self.last(),)))
        return value

    def relu(self, x: str) -> str:
        """A Relu."""
        return self.node("Relu", [x])

    def finish(self, name: str, outputs: list[str], frozen: tuple[str, ...] = ()) -> Network:
        """The network; `frozen` are tensors that are inputs of the model as well."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = [("x", self.shape), *((n, self.values[n].value.shape) for n in frozen)]
        graph = helper.make_graph(
            self.nodes, name, [helper.make_tensor_value_info(n, kind, shape) for n, shape in inputs],
            [helper.make_tensor_value_info(n, kind, self.values[n].value.shape) for n in outputs], self.tensors,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
        return Network(name, model, tuple(self.sites), dict(self.traps))
