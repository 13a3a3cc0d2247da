"""AveragePool, GlobalAveragePool, MaxPool and GlobalMaxPool carry a map that is the same at every location.

    before:  c = Conv(x, W)          p = AveragePool <kernel_shape = [2, 2]> (c)      y = BatchNormalization(p, ...)
    after:   c_folded = Conv(x, W', b')      y = AveragePool <kernel_shape = [2, 2]> (c_folded)

    mean(s x + t) = s mean(x) + t        where all that is averaged is x: no padding is counted
    max(s x + t) = s max(x) + t          where s >= 0, and each window holds some x

An average is linear, so scale always passes; in a window of nothing but padding it gives the same 0 or NaN both
times. Shift passes where no padding is read, or is not counted (count_include_pad = 0) and each window holds an
element of x. A maximum over nothing is the lowest number of the type, which neither scale nor shift would give.
What ceil_mode lets stand over the end counts as padding: with count_include_pad, runtimes disagree about it.
Source: ONNX AveragePool-1, -7, -10, -11, -19, -22, GlobalAveragePool-1, -22, MaxPool-1, -8, -10, -11, -12, -22.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, ints_attribute, label
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, unknown
from bnfold.rules.windows import reads_padding, window_wholly_in_padding


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the same map."""
    if output:
        at = label(facts.nodes[index])
        return Refusal(Code.PRODUCER_CANNOT_ABSORB, f"the indices of {at} are no data that a map could change", at)
    return _passed(facts, index, affine.reduced(), pulls=True)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the same map on."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _passed(facts, index, affine, pulls=False)


def _passed(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    node = facts.nodes[index]
    if not {0, 1}.issuperset(affine.axes):
        message = f"the map is not the same at every location of a feature map, and {label(node)} pools these"
        return Refusal(Code.NOT_PER_MAP, message, label(node))
    averages = node.op_type.endswith("AveragePool")
    fault = _average_fault(facts, index, affine) if averages else _max_fault(facts, index, affine, pulls=pulls)
    if fault is not None:
        return fault
    step = carried(affine, pulls=pulls)
    return Step(asks=step.asks, computes=averages)


def _average_fault(facts: GraphFacts, index: int, affine: ChannelAffine) -> Refusal | None:
    node = facts.nodes[index]
    if node.op_type.startswith("Global") or affine.only_scales:
        return None
    kernel = ints_attribute(node, "kernel_shape")
    if kernel is None:
        return unknown(facts, index, "the kernel_shape")
    if not reads_padding(facts, index, kernel):
        return None
    if int_attribute(node, "count_include_pad", 0):
        message = f"{label(node)} may count padding into its averages, which the shift would not reach"
        return Refusal(Code.SHIFT_MEETS_PADDING, message, label(node))
    return _empty_window(facts, index, kernel)


def _max_fault(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Refusal | None:
    node, at = facts.nodes[index], label(facts.nodes[index])
    if any(name and not facts.is_free(name) for name in node.output[1:]):
        code = Code.PRODUCER_CANNOT_ABSORB if pulls else Code.CONSUMER_CANNOT_ABSORB
        return Refusal(code, f"the indices of {at} are used, and a map may make equal what was not", at)
    if (affine.scale < 0).any():
        return Refusal(Code.NEGATIVE_SCALE, f"a negative scale would turn the maxima of {at} into minima", at)
    if node.op_type.startswith("Global"):
        return None
    kernel = ints_attribute(node, "kernel_shape")
    if kernel is None:
        return unknown(facts, index, "the kernel_shape")
    return _empty_window(facts, index, kernel)


def _empty_window(facts: GraphFacts, index: int, kernel: tuple[int, ...]) -> Refusal | None:
    if not window_wholly_in_padding(facts, index, kernel):
        return None
    at = label(facts.nodes[index])
    return Refusal(Code.SHIFT_MEETS_PADDING, f"a window of {at} may hold nothing but padding", at)
