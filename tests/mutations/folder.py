"""A folder that shares no code with bnfold: it folds the sites that a network lists, rightly or with one thing wrong.

    behind    y = s (W * x + b) + t           W' = s W,   b' = s b + t
    before    y = W * (s x + t) + b           W' = W s,   b' = b + W t     (no padding)

Arithmetic is float64 with one rounding at the end, or step by step in float32 or in the weight's own type, as other
tools do it. `Twist` is where a fold goes wrong: in the maps (s, t), or in the weight and bias that come out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, helper

from tests.mutations.build import Network, Site
from tests.mutations.evaluate import attributes
from tests.mutations.model import Model


@dataclass(frozen=True, slots=True)
class Map:
    """x -> scale * x + shift, arrays (C,), and where it comes from.

    `normal` holds gamma, beta, mean, var, epsilon of a BatchNormalization; `steps` a chain's operators and constants.
    """

    scale: np.ndarray
    shift: np.ndarray
    normal: dict[str, np.ndarray] = field(default_factory=dict)
    steps: tuple[tuple[str, np.ndarray], ...] = ()


@dataclass(slots=True)
class Core:
    """One product before and after a fold.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        axis: the axis of the weight that the maps scale; of the channels for a fold from before.
        old, old_bias: before; the bias is zeros where there is none. Gemm's alpha and beta are not in them.
        weight, bias: after.
        given: the map that was taken in; of a Concat's input its part.
    """

    node: NodeProto
    axis: int
    old: np.ndarray
    old_bias: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    given: Map


@dataclass(frozen=True, slots=True)
class Twist:
    """What is done wrong at one site: `maps` changes the map, `arrays` the result of one core; None: nothing."""

    site: Site
    maps: Callable[[Map], Map] | None = None
    arrays: Callable[[Core], None] | None = None
    core: int = 0


def fold(network: Network, arithmetic=np.float64, twist: Twist | None = None) -> ModelProto:
    """Fold every site of the network; that of `twist`, if any, in its way (which may be one of the traps)."""
    model = Model(network.model)
    twisted = None if twist is None else twist.site
    for site in dict.fromkeys((*([twisted] if twisted else []), *network.sites)):
        _fold_site(model, site, arithmetic, twist if site == twisted else None)
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.input}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in read:
            del model.graph.initializer[index]
    return model.proto


def _fold_site(model: Model, site: Site, arithmetic, twist: Twist | None) -> None:
    given = composed(model, [model.node(name) for name in site.maps], arithmetic)
    if twist is not None and twist.maps is not None:
        given = twist.maps(given)
    start = 0
    for number, name in enumerate(site.cores):
        node = model.node(name)
        maps = count(model, node) if site.side == "behind" else len(given.scale)
        part = slice(start, start + maps)
        core = absorbed(model, site, node, Map(given.scale[part], given.shift[part]), arithmetic)
        if twist is not None and twist.arrays is not None and number == twist.core:
            twist.arrays(core)
        _store(model, site, core)
        start += maps
    _close(model, site)


def composed(model: Model, nodes: list[NodeProto], arithmetic) -> Map:
    """The one map that the nodes compute together, in the given arithmetic."""
    if nodes[0].op_type == "BatchNormalization":
        return _normal(model, nodes[0], arithmetic)
    return chained(tuple((node.op_type, model.array(node.input[1]).astype(arithmetic).reshape(-1)) for node in nodes))


def chained(steps: tuple[tuple[str, np.ndarray], ...]) -> Map:
    """The map of a chain of Mul, Div, Add, Sub."""
    scale, shift = np.ones_like(steps[0][1]), np.zeros_like(steps[0][1])
    for op, k in steps:
        scale = {"Mul": scale * k, "Div": scale / k}.get(op, scale)
        shift = {"Mul": shift * k, "Div": shift / k, "Add": shift + k, "Sub": shift - k}[op]
    return Map(scale, shift, steps=steps)


def _normal(model: Model, node: NodeProto, arithmetic) -> Map:
    gamma, beta, mean, var = (model.array(name).astype(arithmetic) for name in node.input[1:])
    epsilon = np.asarray(attributes(node)["epsilon"], arithmetic)
    return normalised({"gamma": gamma, "beta": beta, "mean": mean, "var": var, "epsilon": epsilon})


def normalised(normal: dict[str, np.ndarray]) -> Map:
    """scale and shift of a BatchNormalization: Ioffe & Szegedy 2015, Alg. 2."""
    scale = normal["gamma"] / np.sqrt(normal["var"] + normal["epsilon"])
    return Map(scale, normal["beta"] - scale * normal["mean"], normal)


def weight_axis(node: NodeProto, side: str = "behind") -> int:
    """The axis of the weight along which maps (behind) or channels (before) lie."""
    rows = node.op_type == "Conv" or (node.op_type == "Gemm" and attributes(node).get("transB", 0))
    behind = 0 if rows else 1
    return behind if side == "behind" else 1 - behind


def groups(node: NodeProto) -> int:
    """In how many groups a convolution works."""
    return attributes(node).get("group", 1)


def count(model: Model, node: NodeProto) -> int:
    """How many maps a product puts out."""
    weight = model.held(node.input[1])
    return weight.dims[weight_axis(node)] * (groups(node) if node.op_type == "ConvTranspose" else 1)


def spread(node: NodeProto, weight: np.ndarray, factors: np.ndarray, side: str) -> np.ndarray:
    """One factor for each map or channel, as an array that multiplies the weight."""
    tail, group = (1,) * (weight.ndim - 2), groups(node)
    if weight_axis(node, side) == 0:
        return factors.reshape(-1, 1, *tail)
    if group == 1:
        return factors.reshape(1, -1, *tail)
    return np.repeat(factors.reshape(group, -1), weight.shape[0] // group, axis=0).reshape(*weight.shape[:2], *tail)


def absorbed(model: Model, site: Site, node: NodeProto, given: Map, arithmetic) -> Core:
    """Weight and bias with the map in them."""
    old = model.array(node.input[1]).astype(arithmetic)
    axis, bias = weight_axis(node, site.side), _bias(model, site, node, arithmetic)
    weight = old * spread(node, old, given.scale, site.side)
    alpha, beta = (np.asarray(attributes(node).get(key, 1.0), arithmetic) for key in ("alpha", "beta"))
    if site.side == "behind":
        new = given.scale * (beta * bias) + given.shift
    else:
        new = beta * bias + alpha * reach(node, old * spread(node, old, given.shift, "before"))
    return Core(node, axis, old, bias, weight, new, given)


def reach(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """The sums over everything but the maps, of Conv, Gemm or MatMul."""
    return weight.sum(axis=tuple(axis for axis in range(weight.ndim) if axis != weight_axis(node)))


def _bias(model: Model, site: Site, node: NodeProto, arithmetic) -> np.ndarray:
    holder = model.node(site.added).input[1] if site.added else "".join(node.input[2:3])
    return model.array(holder).astype(arithmetic) if holder else np.zeros(count(model, node), arithmetic)


def _store(model: Model, site: Site, core: Core) -> None:
    """Write weight and bias under fresh names; a MatMul's bias goes to an Add, a Gemm's beta becomes 1."""
    node, dtype = core.node, model.array(core.node.input[1]).dtype
    with np.errstate(over="ignore"):
        weight, bias = core.weight.astype(dtype), core.bias.astype(dtype)
    node.input[1] = model.put(f"{node.name}_weight", weight)
    holder = model.put(f"{node.name}_bias", bias)
    if node.op_type != "MatMul":
        del node.input[2:]
        node.input.append(holder)
        for entry in [a for a in node.attribute if a.name == "beta"]:
            node.attribute.remove(entry)
    elif site.added:
        model.node(site.added).input[1] = holder
    else:
        output = f"{node.name}_scaled"
        extra = helper.make_node("Add", [output, holder], [node.output[0]], name=f"{node.name}_add")
        node.output[0] = output
        model.graph.node.insert(model.place(node.name) + 1, extra)


def _close(model: Model, site: Site) -> None:
    """Take the maps out; what is left makes the value. Values that now hold other numbers get other names."""
    first, last = model.node(site.maps[0]), model.node(site.maps[-1])
    if site.side == "before":
        model.node(site.cores[0]).input[0] = first.input[0]
    else:
        for name in (*site.cores, *site.through):
            _rename(model, model.node(name).output[0], f"{name}_folded")
        end = model.maker(first.input[0])
        end.output[0] = last.output[0]
    for name in site.maps:
        model.remove(name)


def _rename(model: Model, old: str, new: str) -> None:
    """Give a value another name, to its maker and its readers."""
    for node in model.readers(old):
        node.input[:] = [new if name == old else name for name in node.input]
    model.maker(old).output[0] = new
