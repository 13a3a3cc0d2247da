"""What a plan is made of: the changes that rules may ask for. Values only; `editor.Editor` carries them out."""

from dataclasses import dataclass

from bnfold.graph import Use
from bnfold.tensors import Tensor


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


Edit = SetConstant | SetAttribute | AddBias | TurnIntoAdd | DropInput


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
