"""Pad, poolings, reductions, rectifiers and resizes carry a map exactly where they say so; onnxruntime judges."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from bnfold.affine import ChannelAffine
from bnfold.edits import SetAttribute, SetConstant
from bnfold.graph import GraphFacts
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step, activation, pad, pool, reduce, resize
from bnfold.rules.windows import Axis, reads_padding, window_wholly_in_padding
from tests.conftest import model, run, tensor

LIMIT = {TensorProto.FLOAT: 2e-6, TensorProto.DOUBLE: 1e-14}  # cubic weights are float32; compared in float32 only
RULES: dict[str, Any] = {
    "Pad": pad, "AveragePool": pool, "MaxPool": pool, "GlobalAveragePool": pool, "GlobalMaxPool": pool,
    "ReduceMean": reduce, "ReduceSum": reduce, "ReduceMax": reduce, "ReduceMin": reduce, "Relu": activation,
    "LeakyRelu": activation, "PRelu": activation, "Resize": resize, "Upsample": resize,
}  # fmt: skip


def single(
    op: str, shape: Sequence[Any], constants: dict[str, Any] | None = None, *, opset: int = 19, double: bool = False,
    **attributes: Any,
) -> ModelProto:  # fmt: skip
    """x -> op -> y. An empty name among the constants' values leaves that input out."""
    kind = np.float64 if double else np.float32
    held = constants or {}
    names = [name if value is not None else "" for name, value in held.items()]
    tensors = [
        tensor(name, value, kind if name in ("value", "slope") else np.asarray(value).dtype)
        for name, value in held.items()
        if value is not None
    ]
    node = helper.make_node(op, ["x", *names], ["y"], name="op", **attributes)
    elem_type = TensorProto.DOUBLE if double else TensorProto.FLOAT
    return model([node], tensors, shape, None, opset=opset, elem_type=elem_type)


def free(shape: Sequence[int], rng: random.Random) -> list[Any]:
    """The shape as a file may declare it: in numbers, or with some sizes open."""
    return [f"d{i}" if i != 1 and rng.random() < 0.4 else size for i, size in enumerate(shape)]


def spread(affine: ChannelAffine, x: Any) -> Any:
    """affine(x)."""
    shape = [1] * x.ndim
    for axis, size in affine.sizes().items():
        shape[axis] = size
    return affine.scale.reshape(shape) * x + affine.shift.reshape(shape)


def random_affine(rng: np.random.Generator, shape: Sequence[int], axes: tuple[int, ...]) -> ChannelAffine:
    """Of numbers that float32 holds: any, or only positive scales, or no shift, or both."""
    sizes = [shape[axis] for axis in axes]
    scale, shift = rng.normal(size=sizes), rng.normal(size=sizes)
    scale = np.abs(scale) if rng.random() < 0.6 else scale
    shift = shift if rng.random() < 0.6 else np.zeros(sizes)
    return ChannelAffine(*(np.asarray(n).astype(np.float32).astype(np.float64) for n in (scale, shift)), axes)


def edited(proto: ModelProto, step: Step) -> ModelProto:
    """The model with the step's edits."""
    new = ModelProto()
    new.CopyFrom(proto)
    node = new.graph.node[0]
    for edit in step.edits:
        if isinstance(edit, SetAttribute):
            kept = [a for a in node.attribute if a.name != edit.name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(edit.name, float(edit.value))])
            continue
        assert isinstance(edit, SetConstant)
        node.input.extend([""] * (edit.index + 1 - len(node.input)))
        node.input[edit.index] = "new"
        new.graph.initializer.append(tensor("new", edit.tensor.array(), edit.tensor.dtype))
    return new


def verdict(proto: ModelProto, affine: ChannelAffine, shape: Sequence[int], *, pulls: bool, seed: int = 0) -> Any:
    """Ask the rule; where it answers, run both sides of the contract and compare. Returns the answer."""
    facts, rule = GraphFacts(proto), RULES[proto.graph.node[0].op_type]
    answer = rule.pull(facts, 0, affine, 0) if pulls else rule.push(facts, 0, {0: affine})
    if isinstance(answer, Refusal):
        assert answer.node is None or answer.node.endswith("'op'")
        return answer
    asked = dict(answer.asks).get(0, ChannelAffine.uniform(1, 0))
    dtype = np.float64 if proto.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE else np.float32
    x = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    if pulls:
        first = spread(affine, run(proto, {"x": x})[0])
        second = run(edited(proto, answer), {"x": spread(asked, x).astype(dtype)})[0]
    else:
        first = run(proto, {"x": spread(affine, x).astype(dtype)})[0]
        second = spread(asked, run(edited(proto, answer), {"x": x})[0])
    assert first.shape == second.shape
    finite = np.isfinite(first)
    assert (finite == np.isfinite(second)).all()
    scale = max(1.0, np.abs(first[finite]).max(initial=0), np.abs(affine.shift).max(initial=0))
    limit = LIMIT[proto.graph.input[0].type.tensor_type.elem_type]
    assert np.abs(first[finite] - second[finite]).max(initial=0) <= limit * scale
    return answer


def runs(proto: ModelProto, shape: Sequence[int]) -> bool:
    """Whether onnxruntime takes the node."""
    dtype = np.float64 if proto.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE else np.float32
    try:
        run(proto, {"x": np.zeros(shape, dtype)})
    except Exception:  # noqa: BLE001  # its errors share no class
        return False
    return True


# --- windows


def enumerated(axis: Axis) -> tuple[bool, bool]:
    """Whether a tap, and whether all taps of a window, lie outside; by listing them all."""
    assert axis.size is not None
    assert axis.pads is not None
    room = axis.size + sum(axis.pads) - axis.reach - 1
    last = -(-room // axis.stride) if axis.ceil else room // axis.stride
    outside = [
        [not 0 <= i * axis.stride - axis.pads[0] + axis.dilation * j < axis.size for j in range(axis.taps)]
        for i in range(last + 1)
    ]
    return any(map(any, outside)), any(map(all, outside))


def test_windows_are_judged_as_listing_every_tap_does() -> None:
    """reads_padding is exact where the size is known; nothing that lies outside goes unnoticed."""
    ranges = (range(1, 8), range(1, 5), range(1, 4), range(1, 4), range(4), range(4), (False, True))
    for n, k, s, d, begin, end, ceil in itertools.product(*ranges):
        axis = Axis(n, k, s, d, (begin, end), ceil)
        if n + begin + end <= axis.reach:
            continue
        reads, misses = enumerated(axis)
        assert axis.reads_padding == reads, axis
        assert axis.may_miss >= misses, axis
        assert d > 1 or axis.may_miss == misses, axis
        unknown = Axis(None, k, s, d, (begin, end), ceil)
        assert unknown.reads_padding >= reads, axis
        assert unknown.may_miss >= misses, axis


def test_same_pads_are_those_of_the_spec() -> None:
    """SAME reads padding where the spec's total is not 0, and no window of it is empty without dilation."""
    for n, k, s, upper in itertools.product(range(1, 9), range(1, 6), range(1, 5), (False, True)):
        windows = -(-n // s)
        total = max((windows - 1) * s + k - n, 0)
        begin = total // 2 if upper else total - total // 2
        reads, misses = enumerated(Axis(n, k, s, 1, (begin, total - begin), ceil=False))
        same = Axis(n, k, s, 1, None, ceil=False)
        assert same.reads_padding >= reads
        assert same.reads_padding == (total > 0)
        assert same.may_miss is misses is False


@pytest.mark.parametrize(
    ("attributes", "shape", "reads", "misses"),
    [
        ({}, (1, 1, "h", "w"), False, False),
        ({"pads": [0, 0, 0, 0]}, (1, 1, 5, 5), False, False),
        ({"pads": [0, 1, 0, 0]}, (1, 1, "h", "w"), True, False),
        ({"pads": [0, 0, 1, 1], "strides": [2, 2]}, (1, 1, 4, 4), False, False),  # the last window stops before
        ({"pads": [0, 0, 1, 1], "strides": [2, 2]}, (1, 1, 5, 5), True, False),
        ({"pads": [0, 0, 1, 1], "strides": [2, 2]}, (1, 1, 4, "w"), True, False),
        ({"auto_pad": "VALID", "pads": [1, 1, 1, 1]}, (1, 1, 5, 5), False, False),  # pads do not count then
        ({"auto_pad": "SAME_UPPER"}, (1, 1, 5, 5), True, False),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (1, 1, 6, 7), False, False),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (1, 1, 6, "w"), False, False),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (1, 1, "h", 7), True, False),
        ({"pads": [2, 0, 0, 0]}, (1, 1, 5, 5), True, True),
        ({"pads": [0, 0, 2, 0]}, (1, 1, "h", 5), True, True),
        ({"dilations": [2, 1], "pads": [1, 0, 1, 0]}, (1, 1, 1, 4), True, True),
        ({"ceil_mode": 1, "strides": [2, 2]}, (1, 1, 5, 5), True, False),
        ({"ceil_mode": 1, "strides": [2, 2]}, (1, 1, 6, 6), False, False),
        ({"ceil_mode": 1, "strides": [3, 3]}, (1, 1, "h", 5), True, True),
        ({"pads": [1, 1]}, (1, 1, 5, 5), True, True),  # these make no sense: assume the worst
        ({"strides": [0, 1]}, (1, 1, 5, 5), True, True),
        ({"pads": [-1, 0, 0, 0]}, (1, 1, 5, 5), True, True),
        ({"auto_pad": "SOME"}, (1, 1, 5, 5), True, True),
        ({}, (1, 1, 5), True, True),
    ],
)
def test_windows_of_a_node(attributes: dict[str, Any], shape: Sequence[Any], reads: bool, misses: bool) -> None:  # noqa: FBT001
    """A kernel of (2, 2) taps, or (2, 1) for SAME_LOWER, against attributes and declared shape."""
    kernel = (2, 1) if attributes.get("auto_pad") == "SAME_LOWER" else (2, 2)
    facts = GraphFacts(single("MaxPool", shape, kernel_shape=kernel, **attributes))
    assert reads_padding(facts, 0, kernel) is reads
    assert window_wholly_in_padding(facts, 0, kernel) is misses


# --- every operator, at random


def _pool(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    spatial = rng.choice([1, 2])
    shape = (2, 3, *(rng.randint(4, 8) for _ in range(spatial)))
    op = rng.choice(["AveragePool", "MaxPool"])
    kernel = [rng.randint(1, 3) for _ in range(spatial)]
    attributes: dict[str, Any] = {"strides": [rng.randint(1, 3) for _ in range(spatial)]}
    if rng.random() < 0.3:
        attributes["auto_pad"] = rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif rng.random() < 0.6:
        attributes["pads"] = [rng.randint(0, k - 1) for k in kernel * 2]
    if rng.random() < 0.3:
        attributes["dilations"] = [rng.randint(1, 2) for _ in range(spatial)]
    attributes["ceil_mode"] = int(rng.random() < 0.4)
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.random() < 0.4)
    double = op == "MaxPool" and rng.random() < 0.3
    return single(op, free(shape, rng), double=double, kernel_shape=kernel, **attributes), shape


def _global(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    shape = (2, 3, *(rng.randint(1, 5) for _ in range(rng.randint(1, 3))))
    return single(rng.choice(["GlobalAveragePool", "GlobalMaxPool"]), free(shape, rng)), shape


def _reduce(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    shape = (2, 3, 4, 5)
    axes = sorted(rng.sample(range(4), rng.randint(1, 3)))
    axes = [axis - 4 if rng.random() < 0.3 else axis for axis in axes]
    opset = rng.choice([11, 13, 18])
    op = rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
    by_input = opset >= (13 if op == "ReduceSum" else 18)
    constants = {"axes": np.array(axes)} if by_input else None
    attributes = {} if by_input else {"axes": axes}
    keep, double = int(rng.random() < 0.5), rng.random() < 0.5
    declared = free(shape, rng)
    return single(op, declared, constants, opset=opset, double=double, keepdims=keep, **attributes), shape


def _rectifier(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    shape, op, double = (2, 3, 4, 4), rng.choice(["Relu", "LeakyRelu", "PRelu"]), rng.random() < 0.5
    slope = {"slope": np.random.default_rng(rng.randint(0, 99)).normal(size=(3, 1, 1))} if op == "PRelu" else None
    attributes = {"alpha": rng.uniform(-1, 2)} if op == "LeakyRelu" else {}
    return single(op, free(shape, rng), slope, double=double and op != "LeakyRelu", **attributes), shape


def _resize(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    shape = (1, 3, 4, 5)
    mode = rng.choice(["nearest", "linear", "cubic"])
    factors = np.array([1, 1, rng.choice([1, 0.5, 2, 1.7]), rng.choice([1, 2, 3, 0.6])], np.float32)
    if mode != "cubic" and rng.random() < 0.2:
        return single("Upsample", free(shape, rng), {"scales": np.ceil(factors)}, opset=9, mode=mode), shape
    places = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"]
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": rng.choice(places)}
    opset = rng.choice([11, 13, 18])
    if mode == "nearest":
        attributes["nearest_mode"] = rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    if mode == "cubic" and rng.random() < 0.5:
        attributes["exclude_outside"] = 1
    if opset == 18 and mode != "nearest" and rng.random() < 0.5:
        attributes["antialias"] = 1
    if opset < 18 or rng.random() < 0.5:
        constants = {"roi": np.zeros(0, np.float32), "scales": factors}
    elif rng.random() < 0.5:
        constants = {"roi": None, "no": None, "sizes": np.array([7, 4])}
        attributes["axes"] = [2, 3]
    else:
        constants = {"roi": None, "no": None, "sizes": np.array([1, 3, 8, 10])}
        attributes["keep_aspect_ratio_policy"] = rng.choice(["stretch", "not_larger"])
    return single("Resize", free(shape, rng), constants, opset=opset, **attributes), shape


def _pad(rng: random.Random) -> tuple[ModelProto, tuple[int, ...]]:
    shape, opset = (2, 3, 4, 5), rng.choice([2, 11, 13, 18, 19])
    mode = rng.choice(["constant"] * 4 + ["reflect", "edge"] + ["wrap"] * (opset == 19))
    low = -1 if rng.random() < 0.3 else 0
    begin, end = ([0, 0, rng.randint(low, 2), rng.randint(low, 2)] for _ in range(2))
    if rng.random() < 0.1:
        end[1] = 1
    if rng.random() < 0.1:
        begin, end = [min(n, 0) for n in begin], [min(n, 0) for n in end]
    value = rng.choice([0.0, 0.0, 1.5, -np.inf]) if mode == "constant" else 0.0
    if opset == 2:
        return single("Pad", free(shape, rng), opset=opset, pads=begin + end, mode=mode, value=value), shape
    constants: dict[str, Any] = {"pads": np.array(begin + end), "value": value}
    if value == 0 and rng.random() < 0.5:
        del constants["value"]
    elif opset >= 18 and not any(begin[:2] + end[:2]) and rng.random() < 0.5:
        constants |= {"pads": np.array(begin[2:] + end[2:]), "axes": np.array([-2, 3])}
    return single("Pad", free(shape, rng), constants, opset=opset, double=rng.random() < 0.5, mode=mode), shape


KINDS: dict[str, Callable[[random.Random], tuple[ModelProto, tuple[int, ...]]]] = {
    "pool": _pool, "global": _global, "reduce": _reduce, "rectifier": _rectifier, "resize": _resize, "pad": _pad,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_exact(kind: str) -> None:
    """pull: op(asked(x)) = affine(op(x)); push: left(op(x)) = op(affine(x)); for random nodes and maps."""
    chance, rng, passed, tried = random.Random(kind), np.random.default_rng(len(kind)), 0, 0
    for seed in range(130):
        proto, shape = KINDS[kind](chance)
        if not runs(proto, shape):
            continue
        pulls = bool(seed % 2)
        dtype = np.float64 if proto.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE else np.float32
        seen = run(proto, {"x": np.zeros(shape, dtype)})[0].shape if pulls else shape
        choices = [axes for axes in [(1,), (1,), (), (0, 1), (0,), (2,)] if not axes or axes[-1] < len(seen)]
        affine = random_affine(rng, seen, chance.choice(choices))
        answer = verdict(proto, affine, shape, pulls=pulls, seed=seed)
        tried += 1
        passed += isinstance(answer, Step)
    assert tried > 60
    assert passed > tried * 0.2


# --- what must pass, and what must not

ANY = ChannelAffine(np.array([2.0, 0.5, 3.0]), np.array([1.0, -1.0, 0.5]))
SCALE = ANY.scaling()
NEGATIVE = ChannelAffine(np.array([2.0, -0.5, 3.0]), np.zeros(3))
EQUAL = ChannelAffine.uniform(2.0, 0.5)
ROWS = ChannelAffine(np.arange(1.0, 5.0), np.zeros(4), (2,))
X = (1, 3, 4, 4)
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
ROI, TWICE = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), np.array([1, 1, 2, 2], np.float32)
NO_ROI = np.zeros(0, np.float32)


@pytest.mark.parametrize("pulls", [True, False])
@pytest.mark.parametrize(
    ("proto", "affine"),
    [
        (single("AveragePool", X, kernel_shape=[2, 2]), ANY),
        (single("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), ANY),
        (single("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), ANY),
        (single("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), NEGATIVE),
        (single("AveragePool", X, kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2], count_include_pad=1), ANY),
        (single("MaxPool", ["n", 3, "h", "w"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), ANY),
        (single("MaxPool", ["n", 3, "h", "w"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), ANY),
        (single("GlobalMaxPool", X), ANY),
        (single("GlobalAveragePool", X), ANY),
        (single("ReduceMean", X, {"axes": np.array([2, -1])}, keepdims=0), ANY),
        (single("ReduceSum", X, {"axes": np.array([2, -1])}), NEGATIVE),
        (single("ReduceMax", X), EQUAL),
        (single("LeakyRelu", X, alpha=0.1), SCALE),
        (single("Pad", X, {"pads": PADS}), NEGATIVE),
        (single("Pad", X, {"pads": PADS, "value": 0.0}, opset=11), SCALE),
        (single("Pad", X, {"pads": PADS, "value": -np.inf}), ANY),
        (single("Pad", X, {"pads": -PADS, "value": 1.0}), ANY),
        (single("Pad", X, {"pads": PADS}, mode="reflect"), ANY),
        (single("Pad", X, {"pads": PADS, "value": 1.5}), EQUAL),
        (single("Pad", X, opset=2, pads=PADS.tolist(), value=1.5), EQUAL),
        (single("Pad", X, {"pads": PADS}), EQUAL),
        (single("Resize", X, {"roi": NO_ROI, "scales": TWICE}, mode="cubic", exclude_outside=1), ANY),
        (single("Resize", X, {"a": None, "b": None, "s": np.array([7, 9])}, axes=[2, 3], mode="linear"), ANY),
        (single("Upsample", X, {"scales": TWICE}, opset=9, mode="nearest"), ANY),
    ],
)
def test_carried(proto: ModelProto, affine: ChannelAffine, *, pulls: bool) -> None:
    """These pass, both ways, and are exact."""
    assert isinstance(verdict(proto, affine, X, pulls=pulls), Step)


@pytest.mark.parametrize("pulls", [True, False])
@pytest.mark.parametrize(
    ("proto", "affine", "code"),
    [
        (single("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), ANY,
         Code.SHIFT_MEETS_PADDING),
        (single("AveragePool", [1, 3, "h", 4], kernel_shape=[2, 2], auto_pad="SAME_UPPER", count_include_pad=1), ANY,
         Code.SHIFT_MEETS_PADDING),
        (single("AveragePool", X, kernel_shape=[2, 2], dilations=[9, 1], pads=[5, 0, 5, 0]), ANY,
         Code.SHIFT_MEETS_PADDING),
        (single("AveragePool", X, kernel_shape=[2, 2]), ROWS, Code.NOT_PER_MAP),
        (single("AveragePool", X, pads=[0, 0, 0, 0]), ANY, Code.UNKNOWN_SHAPE),
        (single("MaxPool", X, kernel_shape=[2, 2]), NEGATIVE, Code.NEGATIVE_SCALE),
        (single("GlobalMaxPool", X), NEGATIVE, Code.NEGATIVE_SCALE),
        (single("MaxPool", X, kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1), SCALE, Code.SHIFT_MEETS_PADDING),
        (single("ReduceSum", X, {"axes": np.array([3])}), EQUAL, None),
        (single("ReduceMax", X, {"axes": np.array([3])}), NEGATIVE, Code.NEGATIVE_SCALE),
        (single("Relu", X), ANY, Code.ACTIVATION_BETWEEN),
        (single("LeakyRelu", X), NEGATIVE, Code.NEGATIVE_SCALE),
        (single("Pad", X, {"pads": PADS}), ANY, Code.SHIFT_MEETS_PADDING),
        (single("Pad", X, {"pads": PADS, "value": 1.0}), SCALE, Code.SHIFT_MEETS_PADDING),
        (single("Pad", X, {"pads": PADS, "value": -np.inf}), NEGATIVE, Code.SHIFT_MEETS_PADDING),
        (single("Pad", X, {"pads": PADS}, mode="reflect"), ROWS, Code.NOT_PER_MAP),
        (single("Resize", X, {"roi": ROI, "scales": TWICE}), ROWS, Code.NOT_PER_MAP),
        (single("Resize", X, {"roi": ROI, "scales": TWICE}, coordinate_transformation_mode="tf_crop_and_resize"),
         EQUAL, Code.SHIFT_MEETS_PADDING),
        (single("Resize", X, {"roi": ROI, "scales": TWICE}, coordinate_transformation_mode="tf_crop_and_resize"),
         SCALE, Code.NOT_PER_MAP),
        (single("Resize", X, {"roi": NO_ROI, "scales": TWICE}, opset=11, nearest_mode="ceil",
                coordinate_transformation_mode="tf_half_pixel_for_nn"), SCALE, Code.NOT_PER_MAP),
        (single("Resize", X, {"a": None, "b": None, "s": np.array([1, 3, 8, 8])},
                keep_aspect_ratio_policy="not_smaller"), SCALE, Code.NOT_PER_MAP),
    ],
)  # fmt: skip
def test_traps_are_refused(proto: ModelProto, affine: ChannelAffine, code: Code | None, *, pulls: bool) -> None:
    """These do not pass, and say why."""
    if code is None:
        code = Code.PRODUCER_CANNOT_ABSORB if pulls else Code.CONSUMER_CANNOT_ABSORB
    answer = verdict(proto, affine, X, pulls=pulls)
    assert isinstance(answer, Refusal)
    assert answer.code == code


def test_a_shift_that_counted_padding_would_miss_does_differ() -> None:
    """The refusal of count_include_pad is no mere caution: onnxruntime's results differ."""
    proto = single("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    x = np.ones(X, np.float32)
    assert np.abs(run(proto, {"x": x + 1})[0] - (run(proto, {"x": x})[0] + 1)).max() > 0.3


def test_a_mean_over_the_axis_of_the_map_is_refused() -> None:
    """push: the maps would be averaged. pull never meets that: the axis is no more, another one has its number."""
    proto = single("ReduceMean", X, {"axes": np.array([1])}, keepdims=0)
    assert verdict(proto, SCALE, X, pulls=False).code == Code.NOT_PER_MAP
    behind = verdict(proto, ChannelAffine(ROWS.scale, ROWS.shift, (1,)), X, pulls=True)
    assert behind.asks[0][1].axes == (2,)


def test_dead_maps_are_pulled_through_a_rectifier() -> None:
    """Scale 0 and a shift that is not negative: the result is the shift on either side. A negative one is refused."""
    affine = ChannelAffine(np.array([0.0, 2.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert isinstance(verdict(single("Relu", X), affine, X, pulls=True), Step)
    assert isinstance(verdict(single("Relu", X), affine, X, pulls=False), Refusal)
    below = ChannelAffine(affine.scale, -affine.shift)
    assert isinstance(verdict(single("Relu", X), below, X, pulls=True), Refusal)


def test_used_indices_hold_a_max_pool() -> None:
    """Indices that something reads refuse; indices that nothing reads do not."""
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], name="op", kernel_shape=[2, 2])
    proto = model([node], [], X, None)
    assert isinstance(pool.pull(GraphFacts(proto), 0, ANY, 0), Step)
    proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, None))
    assert pool.pull(GraphFacts(proto), 0, ANY, 0).code == Code.PRODUCER_CANNOT_ABSORB  # type: ignore[union-attr]
    assert pool.push(GraphFacts(proto), 0, {0: ANY}).code == Code.CONSUMER_CANNOT_ABSORB  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", [pad, pool, reduce, activation, resize])
def test_parameters_are_no_data(rule: Any) -> None:
    """A map before another input than the data (a slope, scales) is refused."""
    facts = GraphFacts(single("PRelu", X, {"slope": np.ones((3, 1, 1))}))
    for changes in ({1: SCALE}, {0: SCALE, 1: SCALE}):
        assert rule.push(facts, 0, changes).code == Code.CONSUMER_CANNOT_ABSORB


def test_the_identity_is_not_handed_on() -> None:
    """push leaves out a map that changes nothing; pull asks all the same."""
    facts = GraphFacts(single("Relu", X))
    one = ChannelAffine.uniform(1.0, 0.0)
    assert activation.push(facts, 0, {0: one}).asks == ()  # type: ignore[union-attr]
    assert len(activation.pull(facts, 0, one, 0).asks) == 1  # type: ignore[union-attr]


def test_unknown_parameters_hold_all_but_uniform_maps() -> None:
    """Axes, pads and scales that are computed at run time: only one number for all passes."""
    for op, slot in (("ReduceMean", 1), ("Resize", 2), ("Pad", 1)):
        names = ["x", *[""] * (slot - 1), "p"]
        proto = model([helper.make_node(op, names, ["y"], name="op")], [], X, None, opset=19)
        kind = TensorProto.FLOAT if op == "Resize" else TensorProto.INT64
        proto.graph.input.append(helper.make_tensor_value_info("p", kind, ["k"]))
        facts, rule = GraphFacts(proto), RULES[op]
        assert rule.pull(facts, 0, SCALE, 0).code == Code.UNKNOWN_SHAPE
        assert rule.push(facts, 0, {0: SCALE}).code == Code.UNKNOWN_SHAPE
        assert isinstance(rule.pull(facts, 0, ChannelAffine.uniform(2, 0), 0), Step)
