"""Reading a constant for a rule or a source: the numbers, or the reason why there are none."""

from bnfold.constants import Constant
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.refusals import Code, Refusal
from bnfold.rounding import FLOAT_TYPES
from bnfold.text import printable


def read_constant(facts: GraphFacts, value: str, role: str, absent: Code) -> Constant | Refusal:
    """The floating-point constant behind `value`; `role` says in messages what it is.

    `absent` is the code for a value that is not constant at all.
    """
    found = facts.constants.find(value)
    if found is None:
        return _why_not(facts, value, role, absent)
    if found.overridable and not facts.freeze_inputs:
        return Refusal(
            Code.OVERRIDABLE_INITIALIZER,
            f"{role} comes from {printable(found.overridable[0])!r}, an initializer that is also a model input",
        )
    if found.tensor.dtype is None or found.tensor.dtype not in FLOAT_TYPES:  # numpy: None == dtype("float64")
        return Refusal(Code.UNSUPPORTED_TYPE, f"{role}, {printable(found.name)!r}, is no floating-point tensor")
    return found


def _why_not(facts: GraphFacts, value: str, role: str, absent: Code) -> Refusal:
    value = facts.through_identity(value)
    if value in facts.sparse:
        return Refusal(Code.SPARSE_WEIGHT, f"{role}, {printable(value)!r}, is a sparse initializer")
    producer = facts.producer(value)
    if producer is None:
        return Refusal(absent, f"{role}, {printable(value)!r}, is {'a model input' if value else 'missing'}")
    by = label(facts.nodes[producer])
    if facts.op(producer) == "Constant" and facts.nodes[producer].attribute[0].name == "sparse_value":
        return Refusal(Code.SPARSE_WEIGHT, f"{role} is the sparse tensor of {by}", by)
    if facts.op(producer) == "DequantizeLinear":
        return Refusal(Code.QUANTIZED_WEIGHT, f"{role} comes out of {by}", by)
    return Refusal(absent, f"{role} is computed at run time by {by}", by)
