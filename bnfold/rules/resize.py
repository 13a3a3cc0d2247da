"""Resize and Upsample carry a map along axes that they do not resize.

    before:  c = Conv(x, W)      r = Resize <mode = "linear"> (c, , [1, 1, 2, 2])     y = BatchNormalization(r, ...)
    after:   c_folded = Conv(x, W', b')      y = Resize <mode = "linear"> (c_folded, , [1, 1, 2, 2])

    sum_k w_k (s x_k + t) = s sum_k w_k x_k + t        since sum_k w_k = 1

The weights of nearest, linear and cubic add up to one, also at the border, with exclude_outside and with
antialias (in onnxruntime too). Only tf_crop_and_resize puts a constant, extrapolation_value, where it looks
beyond the input; scale passes that if it is 0. Which part it looks at follows from `roi`, along every axis.
Source: ONNX Resize-10, -11, -13, -18, -19, Upsample-7, -9; Keys 1981 for the cubic weights.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, ints_attribute, label, text_attribute
from bnfold.parameters import axis_of, resize_scales
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, mismatch, overridable_at, unknown

INTERPOLATING = ("linear", "cubic", "bilinear")  # bilinear: Upsample-1


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the same map."""
    del output
    return _passed(facts, index, affine.reduced(), pulls=True)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the same map on."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _passed(facts, index, affine, pulls=False)


def _passed(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    node, at = facts.nodes[index], label(facts.nodes[index])
    mode = text_attribute(node, "mode", "nearest")
    if mode not in ("nearest", *INTERPOLATING):
        code = Code.PRODUCER_CANNOT_ABSORB if pulls else Code.CONSUMER_CANNOT_ABSORB
        return Refusal(code, f"{at} interpolates in an unknown way", at)
    fault = _crop_fault(facts, index, affine) or _axes_fault(facts, index, affine)
    if fault is not None:
        return fault
    old = node.op_type == "Upsample" or facts.opset() < 11
    frozen = overridable_at(facts, index, [1] if old else [2, 3]) if affine.axes else ()
    return Step(asks=carried(affine, pulls=pulls).asks, frozen=frozen, computes=mode in INTERPOLATING)


def _crop_fault(facts: GraphFacts, index: int, affine: ChannelAffine) -> Refusal | None:
    node, at = facts.nodes[index], label(facts.nodes[index])
    if _coordinates(facts, index) != "tf_crop_and_resize":
        return None
    if not affine.only_scales or float_attribute(node, "extrapolation_value", 0.0):
        message = f"{at} puts a constant where it looks beyond its input, which the map would not reach"
        return Refusal(Code.SHIFT_MEETS_PADDING, message, at)
    return None


def _axes_fault(facts: GraphFacts, index: int, affine: ChannelAffine) -> Refusal | None:
    """Refuse where an axis of the map may be resized, cropped or shifted."""
    if not affine.axes:
        return None
    node, at = facts.nodes[index], label(facts.nodes[index])
    scales = resize_scales(facts, index)
    if scales is None:
        return unknown(facts, index, "by how much each axis is enlarged")
    if max(affine.axes) >= len(scales):
        return mismatch(facts, index)
    listed = ints_attribute(node, "axes") or range(len(scales))
    touched = {axis_of(axis, len(scales)) for axis in listed}
    if touched.isdisjoint(affine.axes):
        return None
    if any(scales[axis] != 1 for axis in affine.axes) or _moves_all(facts, index):
        message = f"{at} may resize or crop an axis along which the map is not the same"
        return Refusal(Code.NOT_PER_MAP, message, at)
    return None


def _moves_all(facts: GraphFacts, index: int) -> bool:
    """Whether the axes that keep their size may be changed all the same."""
    node, coordinates = facts.nodes[index], _coordinates(facts, index)
    if coordinates == "tf_half_pixel_for_nn":  # it looks half an element further, which nearest may round down
        rounding = text_attribute(node, "nearest_mode", "round_prefer_floor")
        down = text_attribute(node, "mode", "nearest") == "nearest" and rounding in ("floor", "round_prefer_floor")
        return not down
    # with a policy, all axes are resized by one and the same scale, whatever their sizes ask for
    policy = text_attribute(node, "keep_aspect_ratio_policy", "stretch")
    return coordinates == "tf_crop_and_resize" or policy != "stretch"


def _coordinates(facts: GraphFacts, index: int) -> str:
    return text_attribute(facts.nodes[index], "coordinate_transformation_mode", "half_pixel")
