"""BatchNormalization in inference form, in every version of the operator, as a ChannelAffine.

    y = BatchNormalization <epsilon = 1e-05> (x, gamma, beta, mean, var)

is y = s * x + t per feature map (Ioffe & Szegedy 2015, Alg. 2). What "inference form" means changed:

| since opset | inference form | parameters |
|---|---|---|
| 1, 6 | attribute `is_test` is not 0 | (C,), or per activation (C, *locations) with `spatial` = 0 |
| 7 | one output | the same |
| 9 | one output | (C,) |
| 14, 15 | `training_mode` = 0 and one output | (C,); from 15 on of their own types |

Trailing outputs with empty names count as absent. `momentum` and `consumed_inputs` (opset 1, a hint for memory
reuse) do not change what is computed. Source: the ONNX operator changelog, BatchNormalization-1 to -15.
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import ONNX_DOMAINS, float_attribute, int_attribute, label, may_nest, nested_nodes
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import Array, to_float64

OP = "BatchNormalization"
KNOWN_VERSIONS = (1, 6, 7, 9, 14, 15)
DEFAULT_EPSILON = float(np.float32(1e-5))
PARAMETERS = ("gamma", "beta", "mean", "var")


def sites(facts: GraphFacts) -> Iterator[Site]:
    """The BatchNormalization nodes of the main graph, in topological order."""
    return (Site(OP, (i,)) for i in facts.live() if facts.op(i) == OP)


def hidden_sites(facts: GraphFacts, closed: Iterable[FunctionProto]) -> Iterator[tuple[NodeProto, Code]]:
    """The BatchNormalization nodes in graphs that stay closed, and in functions that do."""
    for index, node in enumerate(facts.nodes):
        for inner in nested_nodes([node]) if may_nest(node) and not facts.is_open(index) else ():
            if _is_batchnorm(inner):
                yield inner, Code.IN_SUBGRAPH
    for function in closed:
        for node in (*function.node, *nested_nodes(function.node)):
            if _is_batchnorm(node):
                yield node, Code.IN_FUNCTION


def _is_batchnorm(node: NodeProto) -> bool:
    return node.op_type == OP and node.domain in ONNX_DOMAINS


def source(facts: GraphFacts, site: Site) -> Source | Refusal:
    """The affine map that the site computes, or why it is not one fixed map."""
    node = facts.nodes[site.nodes[0]]
    refusal = _not_inference(facts, node)
    if refusal is not None:
        return refusal
    if not node.output or not node.output[0]:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has no output")
    if len(node.input) != 5:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has {len(node.input)} inputs instead of 5")
    arrays: list[Array] = []
    overridable: list[str] = []
    for name, value in zip(PARAMETERS, node.input[1:], strict=True):
        found = read_constant(facts, value, name, node, Code.PARAMS_NOT_CONSTANT)
        if isinstance(found, Refusal):
            return found
        overridable += found.overridable
        arrays.append(found.tensor.array())
    values = _values(facts, node, arrays)
    if isinstance(values, Refusal):
        return values
    epsilon = float_attribute(node, "epsilon", DEFAULT_EPSILON)
    affine = _affine(node, values, epsilon)
    if isinstance(affine, Refusal):
        return affine
    return Source(affine, tuple(overridable), parameters=tuple(arrays), epsilon=epsilon)


def _not_inference(facts: GraphFacts, node: NodeProto) -> Refusal | None:
    if "" not in facts.opsets and facts.model.ir_version >= 3:
        return Refusal(Code.UNKNOWN_VERSION, "the model does not say which version of the standard operators it uses")
    version = _version(facts.opset())
    if version not in KNOWN_VERSIONS:
        return Refusal(Code.UNKNOWN_VERSION, f"{label(node)} is BatchNormalization-{version}, unknown to this bnfold")
    extra = [name for name in node.output[1:] if name]
    if version < 7 and not int_attribute(node, "is_test", 0):
        return Refusal(Code.TRAINING_MODE, f"{label(node)} has is_test=0: it uses the statistics of the batch")
    if version >= 14 and int_attribute(node, "training_mode", 0):
        return Refusal(Code.TRAINING_MODE, f"{label(node)} has training_mode=1: it uses the statistics of the batch")
    if extra:
        return Refusal(
            Code.TRAINING_MODE,
            f"{label(node)} has {len(extra) + 1} outputs, the training form: it uses the statistics of the batch",
        )
    return None


@functools.cache
def _version(opset: int) -> int:
    return int(onnx.defs.get_schema(OP, opset, "").since_version)


def _values(facts: GraphFacts, node: NodeProto, arrays: list[Array]) -> Float64Array | Refusal:
    """The four parameters as (4, C), or as (4, C, *locations) where they are per activation."""
    shapes = [array.shape for array in arrays]
    if any(shape != shapes[0] for shape in shapes):
        return Refusal(Code.SHAPE_MISMATCH, f"gamma, beta, mean, var of {label(node)} have shapes {shapes}")
    same_type = all(array.dtype == arrays[0].dtype for array in arrays)
    values = to_float64(np.stack(arrays)) if same_type else np.stack([to_float64(array) for array in arrays])
    if facts.opset() >= 9 or int_attribute(node, "spatial", 1):
        if len(shapes[0]) != 1:
            return Refusal(Code.SHAPE_MISMATCH, f"parameters of {label(node)} have shape {shapes[0]}, not (C,)")
    elif len(shapes[0]) < 2 or 0 in shapes[0]:
        return Refusal(Code.NOT_PER_MAP, f"{label(node)} has spatial=0 but parameters of shape {shapes[0]}")
    return values


def _affine(node: NodeProto, values: Float64Array, epsilon: float) -> ChannelAffine | Refusal:
    with np.errstate(all="ignore"):
        total = values[3] + epsilon
        affine = ChannelAffine.from_batchnorm(values[0], values[1], values[2], values[3], epsilon)
    finite = np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()
    if not total.size or (finite and _is_sound(total, epsilon)):
        return affine
    return _fault(node, values, total, epsilon)


def _is_sound(total: Float64Array, epsilon: float) -> bool:
    """Whether var + epsilon is positive, finite, and not a remnant of two numbers that cancel.

    Where one of the two is negative and the other only just outweighs it, the sum depends on the precision that it
    is formed in. NaN compares false.
    """
    return bool(total.min() > max(0.0, 2.0**-10 * abs(epsilon)) and total.max() < np.inf)


def _fault(node: NodeProto, values: Float64Array, total: Float64Array, epsilon: float) -> Refusal:
    """Why the map is no good."""
    if not np.isfinite(values).all():
        row, bad, *rest = (int(place) for place in np.argwhere(~np.isfinite(values))[0])
        message = f"{PARAMETERS[row]} of {label(node)} is {values[(row, bad, *rest)]} at map {bad}"
        return Refusal(Code.NON_FINITE, message)
    wrong = np.argwhere(~np.isfinite(total) | (total <= max(0.0, 2.0**-10 * abs(epsilon))))
    if wrong.size:
        first = tuple(int(place) for place in wrong[0])
        message = f"var + epsilon of {label(node)} is {total[first]:g} at map {first[0]} (var {values[3][first]:g})"
        return Refusal(Code.BAD_VARIANCE, message)
    return Refusal(Code.OVERFLOW, f"the map of {label(node)} is not finite in float64")
