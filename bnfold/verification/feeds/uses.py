"""In which range a whole number has to be, from what the model uses it for.

    ids -> Cast -> Unsqueeze -> Gather (table (30522, 64), .)        ids: 0 to 30521
    ids -> Sub (., 2) -> Gather (table (10, 64), .)                  ids: 2 to 11

A value is followed through operators that hand its numbers on, into nested graphs and (inlined) local functions, up
to those in `roles`, which say what they take. Where several say something, all have to be content. Shapes come from
onnx's shape inference with the sizes that the inputs are going to have, so that an index into something that is
itself computed has its range too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.external import all_tensors
from bnfold.nodes import nested_nodes
from bnfold.rounding import Array
from bnfold.tensors import is_external
from bnfold.verification.feeds.roles import Bound, bound_of
from bnfold.verification.feeds.spec import InputSpec

# Of these, the input in the given slots comes out as it is, or some of its numbers do.
_HAND_ON: Mapping[str, tuple[int, ...]] = {
    "Abs": (0,), "Cast": (0,), "CastLike": (0,), "Ceil": (0,), "Compress": (0,), "Expand": (0,), "Flatten": (0,),
    "Floor": (0,), "Gather": (0,), "GatherElements": (0,), "GatherND": (0,), "Identity": (0,), "Pad": (0,),
    "ReduceMax": (0,), "ReduceMin": (0,), "Reshape": (0,), "Round": (0,), "Slice": (0,), "Split": (0,),
    "Squeeze": (0,), "Tile": (0,), "Transpose": (0,), "Unsqueeze": (0,), "Where": (1, 2), "ScatterND": (0, 2),
    "ScatterElements": (0, 2), "Concat": tuple(range(64)), "Max": tuple(range(64)), "Min": tuple(range(64)),
}  # fmt: skip
_UNCHANGED = frozenset(["Cast", "Identity"])  # a shape that goes through others is put together in the model
_WORDS = frozenset(["keys_strings", "cats_strings", "pool_strings", "string_vocabulary", "classlabels_strings"])
_LARGEST_CONSTANT = 4096  # elements; larger ones are weights and tables, of which only the shape counts
_FURTHEST = 64  # operators in a row


@dataclass(frozen=True, slots=True)
class Use:
    """What the numbers of an input are used for.

    Attributes:
        bound: the range of its numbers; None where nothing says.
        is_image: whether they are turned into floats that no range is known for.
        words: text that the model knows, for inputs of text.
        is_number: whether its text is read as a number.
    """

    bound: Bound | None = None
    is_image: bool = False
    words: tuple[str, ...] = ()
    is_number: bool = False


def find_uses(model: ModelProto, specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Use]:
    """What each input of whole numbers or text is used for; empty where there is none.

    Args:
        model: as `lightened` makes it; it is not changed.
        specs: its inputs.
        shapes: what shapes they are going to have.
    """
    wanted = [spec for spec in specs if spec.dtype is not None and spec.dtype.kind in "iuO"]
    if not wanted:
        return {}
    graph = _Graph(_inferred(model, shapes))
    return {spec.name: graph.use(spec.name) for spec in wanted}


def lightened(model: ModelProto) -> ModelProto:
    """The model, which is changed, without large numbers, and without local functions, where onnx can inline them."""
    for tensor in all_tensors(model):
        if is_external(tensor) or np.prod(tensor.dims, dtype=float) > _LARGEST_CONSTANT:
            bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(bare)
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    try:
        return inline_local_functions(model)
    except Exception:  # noqa: BLE001 - onnx's C++ errors share no base class; what functions do stays unknown
        return model


def _inferred(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    sized = ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type
            kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, shapes[value.name]).tensor_type)
    try:
        return onnx.shape_inference.infer_shapes(sized, data_prop=True)
    except Exception:  # noqa: BLE001 - onnx's C++ errors share no base class; shapes stay unknown
        return sized


class _Graph:
    """Consumers, producers, shapes and small constants by name; nested graphs count as part of the main one."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = [*model.graph.node, *nested_nodes(model.graph.node)]
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        self.makers: dict[str, NodeProto] = {}
        for node in self.nodes:
            for slot, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, slot))
            self.makers |= {name: node for name in node.output if name}
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._declared = {
            value.name: value.type.tensor_type.shape
            for values in (model.graph.value_info, model.graph.output, model.graph.input)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }

    def dims(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of a value, as far as it is known."""
        if name in self.tensors:
            return tuple(self.tensors[name].dims)
        if name in self._declared:
            return tuple(d.dim_value if d.HasField("dim_value") else None for d in self._declared[name].dim)
        constant = self.constant(name)
        return None if constant is None else constant.shape

    def constant(self, name: str) -> Array | None:
        """The numbers of a small constant."""
        tensor = self.tensors.get(name)
        maker = self.makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((entry.t for entry in maker.attribute if entry.name == "value"), None)
            ints = next((e for e in maker.attribute if e.name in ("value_int", "value_ints")), None)
            if ints is not None:
                return np.array(list(ints.ints) or ints.i)
        try:
            return None if tensor is None else numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # its numbers were left out
            return None

    def use(self, name: str) -> Use:
        """What the numbers of a value are used for."""
        found = Use()
        seen = set()
        open_ = [(name, 0, True, 0)]
        while open_:
            value, shift, unchanged, depth = open_.pop()
            if (value, shift) in seen or depth > _FURTHEST:
                continue
            seen.add((value, shift))
            for node, slot in self.readers.get(value, ()):
                found = self._with(found, node, slot, shift, unchanged=unchanged)
                more = self._shifted(node, slot)
                if more is not None:
                    still = unchanged and node.op_type in _UNCHANGED
                    open_ += [(output, shift + more, still, depth + 1) for output in node.output if output]
        return found

    def _with(self, found: Use, node: NodeProto, slot: int, shift: int, *, unchanged: bool) -> Use:
        bound = bound_of(self, node, slot, whole=unchanged and not shift)
        if bound is not None:
            bound = replace(bound, low=bound.low - shift, high=bound.high - shift)
            found = replace(found, bound=bound if found.bound is None else found.bound.within(bound))
        if node.op_type == "Cast" and slot == 0:
            target = next((entry.i for entry in node.attribute if entry.name == "to"), 0)
            is_float = target in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
            found = replace(found, is_image=found.is_image or is_float, is_number=found.is_number or target != 8)
        return replace(found, words=(*found.words, *_words(node)))

    def _shifted(self, node: NodeProto, slot: int) -> int | None:
        """How much larger the output is than this input, where the node hands it on; None where it does not."""
        if slot in _HAND_ON.get(node.op_type, ()):
            return 0
        if node.op_type not in ("Add", "Sub") or len(node.input) != 2 or (node.op_type == "Sub" and slot == 1):
            return None
        other = self.constant(node.input[1 - slot])
        if other is None or other.size != 1 or other.dtype.kind not in "iu":
            return None
        return int(other.item()) * (1 if node.op_type == "Add" else -1)


def _words(node: NodeProto) -> Iterator[str]:
    for entry in node.attribute:
        if entry.name in _WORDS and entry.type == AttributeProto.STRINGS:
            yield from (word.decode(errors="replace") for word in entry.strings)
