"""What a plan is made of: the changes that rules may ask for. Values only; `editor.Editor` carries them out."""

from dataclasses import dataclass, replace

from bnfold.graph import Use
from bnfold.tensors import ByCall, Tensor, same_numbers


@dataclass(frozen=True, slots=True)
class SetConstant:
    """Let input `index` of `node` read `tensor` instead. `hint` names it where there was no input before."""

    node: int
    index: int
    tensor: Tensor
    hint: str


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """Set an attribute of `node` to a number."""

    node: int
    name: str
    value: float | int


@dataclass(frozen=True, slots=True)
class AddBias:
    """Let `node`, a MatMul, add `tensor` to its output: by an Add behind it, or as a Gemm where that is legal."""

    node: int
    tensor: Tensor
    hint: str
    gemm: bool


@dataclass(frozen=True, slots=True)
class TurnIntoAdd:
    """Turn `node` into value + tensor. Its output keeps its place."""

    node: int
    value: str
    tensor: Tensor
    hint: str


@dataclass(frozen=True, slots=True)
class TurnIntoIdentity:
    """Turn `node` into a copy of `value`. Its output keeps its place."""

    node: int
    value: str


@dataclass(frozen=True, slots=True)
class DropInput:
    """Take input `index` away from `node`, a Sum of three or more."""

    node: int
    index: int


@dataclass(frozen=True, slots=True)
class Clone:
    """Give the readers `uses` of the output `value` a copy of `node`; edits of `node` then mean the copy."""

    node: int
    value: str
    uses: tuple[Use, ...]


Edit = SetConstant | SetAttribute | AddBias | TurnIntoAdd | TurnIntoIdentity | DropInput


@dataclass(frozen=True, slots=True)
class Plan:
    """How one site goes: what is removed, what is changed, and which names that concerns.

    Attributes:
        direction: "pull", "push", "sibling", "partial" or "merge".
        removed: nodes that go.
        edits: what changes in the nodes that stay.
        takes_place: (old, new): the node that makes `old` makes `new` instead, and `old` is no more.
        rewired: (old, new): who reads `old` reads `new` instead, and `old` is no more.
        carried: values whose contents change; they get fresh names.
        absorbers: the nodes that take the map in.
        clones: nodes to copy first.
        frozen: overridable initializers that this plan takes for constants.
        notes: what the user should know, such as dead maps.
    """

    direction: str
    removed: tuple[int, ...]
    edits: tuple[Edit, ...] = ()
    takes_place: tuple[tuple[str, str], ...] = ()
    rewired: tuple[tuple[str, str], ...] = ()
    carried: tuple[str, ...] = ()
    absorbers: tuple[int, ...] = ()
    clones: tuple[Clone, ...] = ()
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def together(plans: list[Plan]) -> Plan | None:
    """The plans of several calls of a function as one, with the numbers of each; None where they differ otherwise."""
    first = plans[0]
    edits: list[Edit] = []
    for same in zip(*(plan.edits for plan in plans), strict=False):
        edit = same[0]
        if isinstance(edit, SetConstant | AddBias | TurnIntoAdd):
            edit = replace(edit, tensor=_by_call([other.tensor for other in same if isinstance(other, type(edit))]))
            if any(not isinstance(e, type(edit)) or replace(e, tensor=edit.tensor) != edit for e in same):
                return None
        elif any(other != edit for other in same):
            return None
        edits.append(edit)
    if any(_shape(plan) != _shape(first) for plan in plans):
        return None
    frozen = tuple(dict.fromkeys(name for plan in plans for name in plan.frozen))
    notes = tuple(dict.fromkeys(note for plan in plans for note in plan.notes))
    return replace(first, edits=tuple(edits), frozen=frozen, notes=notes)


def _by_call(tensors: list[Tensor]) -> Tensor:
    same = all(same_numbers(tensors[0], tensor) for tensor in tensors)
    return tensors[0] if same else ByCall(tuple(tensors))


def _shape(plan: Plan) -> tuple[object, ...]:
    """All of a plan but its numbers and notes."""
    return (plan.direction, plan.removed, len(plan.edits), plan.takes_place, plan.rewired, plan.carried,
            plan.absorbers, plan.clones)  # fmt: skip
