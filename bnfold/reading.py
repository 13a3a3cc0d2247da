"""Reading a constant for a rule or a source: the numbers, or the reason why there are none."""

from onnx import NodeProto

from bnfold.constants import Constant
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.refusals import Code, Refusal
from bnfold.rounding import FLOAT_TYPES
from bnfold.text import printable


def read_constant(facts: GraphFacts, value: str, what: str, node: NodeProto, absent: Code) -> Constant | Refusal:
    """The floating-point constant behind `value`, which is `what` (gamma, the weight, ...) of `node`.

    `absent` is the code for a value that is not constant at all.
    """
    found = facts.constants.find(value)
    if found is None:
        return _why_not(facts, value, f"{what} of {label(node)}", absent)
    if found.overridable and not facts.freeze_inputs:
        origin = printable(found.overridable[0])
        message = f"{what} of {label(node)} comes from {origin!r}, an initializer that is also a model input"
        return Refusal(Code.OVERRIDABLE_INITIALIZER, message)
    dtype = found.tensor.dtype
    if dtype is None or dtype not in FLOAT_TYPES:  # numpy: None == dtype("float64")
        message = f"{what} of {label(node)}, {printable(found.name)!r}, is no floating-point tensor"
        return Refusal(Code.UNSUPPORTED_TYPE, message)
    return found


def _why_not(facts: GraphFacts, value: str, role: str, absent: Code) -> Refusal:
    value = facts.through_identity(value)
    if value in facts.sparse:
        return Refusal(Code.SPARSE_WEIGHT, f"{role}, {printable(value)!r}, is a sparse initializer")
    producer = facts.producer(value)
    if producer is None:
        given = (
            f"is an input of {facts.where(value)}" if facts.home(value) or facts.in_function else "is a model input"
        )
        given = f"{given}, {facts.unbound[value]}" if value in facts.unbound else given
        where = f"{role}, {printable(value)!r}, {given}" if value else f"{role} is missing"
        return Refusal(absent, where)
    by = label(facts.nodes[producer])
    if facts.op(producer) == "Constant" and any(
        entry.name == "sparse_value" for entry in facts.nodes[producer].attribute
    ):
        return Refusal(Code.SPARSE_WEIGHT, f"{role} is the sparse tensor of {by}", by)
    if facts.op(producer) == "DequantizeLinear":
        return Refusal(Code.QUANTIZED_WEIGHT, f"{role} comes out of {by}", by)
    return Refusal(absent, f"{role} is computed at run time by {by}", by)


def is_constant(facts: GraphFacts, value: str) -> bool:
    """Whether `value` is the same in every run, without looking at its numbers."""
    producer = facts.producer(value)
    return value in facts.constants.stored or (producer is not None and facts.constants.computes(producer))
