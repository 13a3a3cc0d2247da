"""The rules of operators that only move values, each judged by running the operator in float64.

A carrier moves numbers and computes nothing, so both sides of the contract agree to the last bit:
pull: op(asked(x)) == affine(op(x)) for the output at issue, all others unchanged; push: rest(op(x)) == op(affine(x)).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.concat import pull_concat, push_concat
from bnfold.rules.depth_to_space import (
    pull_depth_to_space,
    pull_space_to_depth,
    push_depth_to_space,
    push_space_to_depth,
)
from bnfold.rules.expand import pull_expand, pull_tile, push_expand, push_tile
from bnfold.rules.pieces import pull_gather, pull_slice, pull_split, push_gather, push_slice, push_split
from bnfold.rules.reshape import pull_reshape, push_reshape, regroup
from bnfold.rules.squeeze import pull_squeeze, pull_unsqueeze, push_squeeze, push_unsqueeze
from bnfold.rules.transpose import pull_transpose, push_transpose
from bnfold.shapes import Dim, fixed, product
from tests.conftest import tensor

PULL: Mapping[str, Callable[..., Step | Refusal]] = {
    "Concat": pull_concat, "DepthToSpace": pull_depth_to_space, "SpaceToDepth": pull_space_to_depth,
    "Expand": pull_expand, "Tile": pull_tile, "Gather": pull_gather, "Slice": pull_slice, "Split": pull_split,
    "Reshape": pull_reshape, "Flatten": pull_reshape, "Squeeze": pull_squeeze, "Unsqueeze": pull_unsqueeze,
    "Transpose": pull_transpose,
}  # fmt: skip
PUSH: Mapping[str, Callable[..., Step | Refusal]] = {
    "Concat": push_concat, "DepthToSpace": push_depth_to_space, "SpaceToDepth": push_space_to_depth,
    "Expand": push_expand, "Tile": push_tile, "Gather": push_gather, "Slice": push_slice, "Split": push_split,
    "Reshape": push_reshape, "Flatten": push_reshape, "Squeeze": push_squeeze, "Unsqueeze": push_unsqueeze,
    "Transpose": push_transpose,
}  # fmt: skip


class Case:
    """One node on data inputs x0, x1, ... of the given shapes, with integer parameters behind them.

    `declared` replaces what the graph says about the shapes of the inputs; None for one of which nothing is said.
    """

    def __init__(
        self, op: str, shapes: Sequence[Sequence[int]], *parameters: Any, outputs: int = 1, opset: int = 17,
        declared: Sequence[Sequence[Any] | None] | None = None, overridable: bool = False, freeze: bool = False,
        **attributes: Any,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(7)
        self.op = op
        self.data = [rng.integers(-9, 9, shape).astype(np.float64) for shape in shapes]
        held = [tensor(f"p{i}", p, np.int64) for i, p in enumerate(parameters)]
        names = [f"x{i}" for i in range(len(shapes))] + [f"p{i}" for i in range(len(parameters))]
        self.node: NodeProto = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
        said = declared if declared is not None else shapes
        inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.DOUBLE, s) for i, s in enumerate(said)]
        if overridable:
            inputs += [helper.make_tensor_value_info(t.name, TensorProto.INT64, t.dims) for t in held]
        results = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in self.node.output]
        graph = helper.make_graph([self.node], "g", inputs, results, held)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        self.facts = GraphFacts(proto, freeze_inputs=freeze)
        self._proto = proto

    def run(self, data: Sequence[Any]) -> list[Any]:
        """The outputs for these inputs."""
        return list(ReferenceEvaluator(self._proto).run(None, {f"x{i}": array for i, array in enumerate(data)}))

    def pull(self, affine: ChannelAffine, output: int = 0) -> Step | Refusal:
        """Ask the rule, and check what it says by running the node."""
        step = PULL[self.op](self.facts, 0, affine, output)
        if isinstance(step, Step):
            assert len({slot for slot, _ in step.asks}) == len(step.asks)
            assert not step.edits
            wanted, data = self.run(self.data), list(self.data)
            wanted[output] = applied(affine, wanted[output])
            for slot, asked in step.asks:
                data[slot] = applied(asked, data[slot])
            _assert_equal(self.run(data), wanted)
        return step

    def push(self, changes: ChannelAffine | Mapping[int, ChannelAffine]) -> Step | Refusal:
        """Ask the rule, and check what it says by running the node."""
        before = {0: changes} if isinstance(changes, ChannelAffine) else changes
        step = PUSH[self.op](self.facts, 0, before)
        if isinstance(step, Step):
            assert not any(rest.is_identity for _, rest in step.asks)
            data = [applied(before[i], x) if i in before else x for i, x in enumerate(self.data)]
            found = self.run(self.data)
            for output, rest in step.asks:
                found[output] = applied(rest, found[output])
            _assert_equal(found, self.run(data))
        return step


def _assert_equal(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    for first, second in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(first, second)


def applied(affine: ChannelAffine, x: Any) -> Any:
    """The map by its definition; its parameters must have the sizes of the value."""
    assert all(x.shape[axis] == size for axis, size in affine.sizes().items())
    shape = [affine.sizes().get(axis, 1) for axis in range(x.ndim)]
    return affine.scale.reshape(shape) * x + affine.shift.reshape(shape)


def some(sizes: Mapping[int, int], seed: int = 0) -> ChannelAffine:
    """Small whole numbers, which compute exactly, different for each map."""
    rng = np.random.default_rng(seed)
    shape = tuple(sizes.values())
    count = int(np.prod(shape))
    scale = (rng.permutation(count) + 2.0).reshape(shape) * rng.choice([-1.0, 1.0], shape)
    return ChannelAffine(scale, rng.permutation(count).reshape(shape).astype(np.float64), tuple(sizes))


def spans(shape: Sequence[int], rng: np.random.Generator) -> ChannelAffine:
    """A random map over a random choice of axes, constant along some of them."""
    axes = sorted(rng.choice(len(shape), rng.integers(0, min(3, len(shape)) + 1), replace=False).tolist())
    sizes = {axis: shape[axis] for axis in axes}
    real = some({axis: size for axis, size in sizes.items() if rng.random() < 0.7}, int(rng.integers(99)))
    return real.over(tuple(sizes), sizes)


def code(step: Step | Refusal) -> Code:
    """The code of what must be a refusal, which names the node and is a sentence."""
    assert isinstance(step, Refusal)
    assert step.node is not None
    assert step.node in step.message
    return step.code


def asked(step: Step | Refusal) -> ChannelAffine:
    """The one map that is left to ask for."""
    assert isinstance(step, Step), step
    assert len(step.asks) == 1
    return step.asks[0][1]


MOVES: Sequence[tuple[str, Callable[[], Case]]] = [
    ("transpose", lambda: Case("Transpose", [(2, 3, 4, 5)], perm=[0, 2, 3, 1])),
    ("transpose cycle", lambda: Case("Transpose", [(2, 3, 4)], perm=[2, 0, 1])),
    ("transpose reversed", lambda: Case("Transpose", [(2, 3, 4)])),
    ("squeeze", lambda: Case("Squeeze", [(2, 1, 3, 1, 4)], [1, -2])),
    ("squeeze front", lambda: Case("Squeeze", [(1, 1, 3, 4)], [1, 0])),
    ("squeeze all", lambda: Case("Squeeze", [(2, 1, 3, 1)])),
    ("squeeze attribute", lambda: Case("Squeeze", [(2, 3, 1, 1)], axes=[2, 3], opset=11)),
    ("unsqueeze", lambda: Case("Unsqueeze", [(2, 3, 4)], [1, 3])),
    ("unsqueeze negative", lambda: Case("Unsqueeze", [(2, 3)], [-1, 0])),
    ("unsqueeze attribute", lambda: Case("Unsqueeze", [(2, 3)], axes=[1], opset=11)),
    ("split channels", lambda: Case("Reshape", [(2, 6, 4)], [0, 2, 3, -1])),
    ("merge channels", lambda: Case("Reshape", [(2, 3, 4, 2)], [2, 12, 2])),
    ("merge with space", lambda: Case("Reshape", [(2, 3, 2, 2)], [0, -1])),
    ("merge with batch", lambda: Case("Reshape", [(2, 3, 4)], [-1, 4])),
    ("regroup channels", lambda: Case("Reshape", [(2, 6, 5)], [2, 2, 3, 5])),
    ("regroup everything", lambda: Case("Reshape", [(2, 6, 4)], [3, 4, 4])),
    ("scramble channels", lambda: Case("Reshape", [(1, 3, 2, 2)], [1, 2, 2, 3])),
    ("reshape ones", lambda: Case("Reshape", [(2, 1, 3, 1)], [1, 2, 3, 1, 1])),
    ("flatten", lambda: Case("Flatten", [(2, 3, 2, 2)])),
    ("flatten 0", lambda: Case("Flatten", [(2, 3, 2)], axis=0)),
    ("flatten -1", lambda: Case("Flatten", [(2, 3, 2)], axis=-1)),
    ("expand", lambda: Case("Expand", [(3, 1, 2)], [2, 1, 4, 1])),
    ("tile", lambda: Case("Tile", [(2, 3, 2)], [1, 2, 3])),
    ("concat", lambda: Case("Concat", [(2, 1, 3), (2, 4, 3), (2, 2, 3)], axis=1)),
    ("concat last", lambda: Case("Concat", [(2, 3, 1), (2, 3, 2)], axis=-1)),
    ("concat one", lambda: Case("Concat", [(2, 3)], axis=0)),
    ("split", lambda: Case("Split", [(2, 6, 2)], [1, 3, 2], outputs=3, axis=1)),
    ("split equal", lambda: Case("Split", [(2, 3, 6)], outputs=3, axis=-1)),
    ("split attribute", lambda: Case("Split", [(3, 2)], outputs=2, axis=0, split=[1, 2], opset=11)),
    ("split uneven", lambda: Case("Split", [(2, 5)], outputs=2, axis=1, num_outputs=2, opset=18)),
    ("slice", lambda: Case("Slice", [(2, 7, 5)], [1, -3], [6, 2**31 - 1], [1, -1], [2, 1])),
    ("slice backwards", lambda: Case("Slice", [(2, 7, 5)], [-1], [-(2**31)], [1], [-2])),
    ("slice past the end", lambda: Case("Slice", [(2, 7)], [3], [100], [1])),
    ("slice attributes", lambda: Case("Slice", [(2, 7)], starts=[0, 2], ends=[1, 4], opset=9)),
    ("gather", lambda: Case("Gather", [(2, 5, 3)], [4, 0, -3], axis=1)),
    ("gather one", lambda: Case("Gather", [(2, 5, 3)], [3], axis=-2)),
    ("gather scalar", lambda: Case("Gather", [(2, 5, 3)], 2, axis=1)),
    ("depth to space", lambda: Case("DepthToSpace", [(2, 12, 2, 3)], blocksize=2)),
    ("depth to space CRD", lambda: Case("DepthToSpace", [(2, 12, 2, 3)], blocksize=2, mode="CRD")),
    ("space to depth", lambda: Case("SpaceToDepth", [(2, 3, 4, 6)], blocksize=2)),
]
LOSSY = {"DepthToSpace", "SpaceToDepth", "Expand", "Tile"}


@pytest.mark.parametrize(("name", "make"), MOVES, ids=[name for name, _ in MOVES])
def test_carried_maps_compute_the_same(name: str, make: Callable[[], Case]) -> None:
    """Any map over any axes is carried both ways, exactly; refused only where the operator copies or mixes."""
    case = make()
    rng = np.random.default_rng(len(name))
    outputs = case.run(case.data)
    for _ in range(12):
        for output, y in enumerate(outputs):
            step = case.pull(spans(y.shape, rng), output)
            assert isinstance(step, Step) or (case.op in LOSSY and step.code is Code.NOT_PER_MAP)
        slots = rng.random(len(case.data)) < 0.7
        slots[rng.integers(len(slots))] = True
        step = case.push({i: spans(x.shape, rng) for i, x in enumerate(case.data) if slots[i]})
        assert isinstance(step, Step) or (case.op in LOSSY and step.code is Code.NOT_PER_MAP)


UNSHAPED: Sequence[tuple[str, Callable[..., Case]]] = [
    ("Transpose", lambda **k: Case("Transpose", [(2, 3)], **k)),
    ("Squeeze", lambda **k: Case("Squeeze", [(2, 1)], [-1], **k)),
    ("Unsqueeze", lambda **k: Case("Unsqueeze", [(2, 3)], [-1], **k)),
    ("Reshape", lambda **k: Case("Reshape", [(2, 3)], [3, 2], **k)),
    ("Flatten", lambda **k: Case("Flatten", [(2, 3, 2)], **k)),
    ("Expand", lambda **k: Case("Expand", [(2, 3)], [4, 2, 3], **k)),
    ("Concat", lambda **k: Case("Concat", [(2, 3)], axis=-1, **k)),
    ("Slice", lambda **k: Case("Slice", [(2, 3)], [1], [2], [-1], **k)),
    ("Gather", lambda **k: Case("Gather", [(2, 3)], [1], axis=-1, **k)),
]


@pytest.mark.parametrize("make", [make for _, make in UNSHAPED], ids=[op for op, _ in UNSHAPED])
def test_one_pair_of_numbers_passes_without_shapes(make: Callable[..., Case]) -> None:
    """One pair for the whole value, however it is spelled, asks for no shape; a real map is refused without."""
    case = make(declared=[None])
    one = ChannelAffine.uniform(3, -2)
    for affine in (one, one.over((0,), {0: 2})):
        assert asked(case.push(affine)).axes == ()
    assert asked(case.pull(one)).axes == ()
    assert code(case.push(some({0: 2}))) is Code.UNKNOWN_SHAPE
    assert code(case.pull(some({0: case.run(case.data)[0].shape[0]}))) is Code.UNKNOWN_SHAPE


def test_identity_is_not_handed_on() -> None:
    """A push that leaves nothing to do asks nothing."""
    case = Case("Split", [(2, 4)], outputs=2, axis=1)
    half = ChannelAffine(np.array([2.0, 3, 1, 1]), np.zeros(4), (1,))
    step = case.push(half)
    assert isinstance(step, Step)
    assert [output for output, _ in step.asks] == [0]
    nothing = case.push(ChannelAffine.uniform(1, 0))
    assert isinstance(nothing, Step)
    assert nothing.asks == ()


@pytest.mark.parametrize("op", sorted(set(PUSH) - {"Concat"}))
def test_parameters_do_not_change(op: str) -> None:
    """A node that reads the value as a shape, as indices or both as data and parameter refuses."""
    case = Case("Reshape", [(2, 3)], [3, 2])
    for slots in ([1], [0, 1]):
        changes = dict.fromkeys(slots, ChannelAffine.uniform(2, 0))
        assert code(PUSH[op](case.facts, 0, changes)) is Code.CONSUMER_CANNOT_ABSORB


def test_dynamic_batch_is_followed() -> None:
    """Channels are split and merged behind a batch of any size, by 0 and by -1 alike."""
    case = Case("Reshape", [(2, 6, 4)], [0, 3, 2, -1], declared=[("N", 6, "L")])
    assert asked(case.push(some({1: 6}))).axes == (1, 2)
    assert asked(case.pull(some({1: 3, 2: 2}))).axes == (1,)
    merged = Case("Reshape", [(2, 6, 2, 2)], [-1, 24], declared=[("N", 6, 2, 2)])
    assert asked(merged.pull(some({1: 24}))).axes == (1, 2, 3)
    assert asked(Case("Flatten", [(2, 3, 2, 2)], declared=[("N", 3, 2, 2)]).push(some({1: 3}))).sizes() == {1: 12}


def test_merge_with_a_constant_factor_repeats() -> None:
    """Flatten of (N, C, H, W) repeats each pair H*W times; pulled back it must be constant there to be per map."""
    case = Case("Flatten", [(2, 3, 2, 2)])
    flat = asked(case.push(some({1: 3})))
    assert asked(case.pull(flat)).axes == (1,)
    assert asked(case.pull(some({1: 12}))).axes == (1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "target", "declared", "spans"),
    [
        ((2, 6, 4), [6, 2, 4], ("N", 6, 4), {1: 6}),  # the batch and the maps are mixed
        ((2, 6, 4), [2, -1], ("N", 6, "L"), {1: 6}),  # merged with a length that nobody knows
        ((2, 6, 4), [-1, 8], ("N", "C", "L"), {1: 6}),
        ((0, 6), [3, 0], (0, 6), {1: 6}),
    ],
)
def test_reshapes_that_cannot_be_followed(shape: Any, target: Any, declared: Any, spans: Any) -> None:
    """Where the blocks of a map are not numbers, its Reshape is refused."""
    case = Case("Reshape", [shape], target, declared=[declared])
    assert code(case.push(some(spans))) is Code.UNKNOWN_SHAPE


def test_regroup_takes_names_only_as_products() -> None:
    """Blocks end where the same product stands on either side, named or not; what does not fit is None."""
    n, h = Dim(1, ("n",)), Dim(1, ("h",))
    channels = some({1: 6})
    found = regroup(channels, (n, Dim(6), h), (n, Dim(2), Dim(3), h))
    assert found is not None
    assert found.axes == (1, 2)
    assert regroup(found, (n, Dim(2), Dim(3), h), (n * Dim(2), Dim(3) * h)) is None
    assert regroup(found.take(1, np.array([0])), (n, Dim(1), Dim(3), h), (n, Dim(3) * h)) is None
    behind = regroup(channels, (n, Dim(6)), (Dim(1, ("m",)), h, Dim(6)))
    assert behind is not None
    assert behind.axes == (2,)
    assert regroup(channels, fixed((2, 5)), fixed((10,))) is None
    assert regroup(channels, (n, Dim(6)), (n, Dim(7))) is None
    assert regroup(some({1: 2}), fixed((1, 2, 2**22)), fixed((1, 2**23))) is None


@pytest.mark.parametrize("seed", range(150))
def test_regroup_computes_the_same(seed: int) -> None:
    """Random factors, some of them names, grouped in two ways, at times shuffled: what is answered is exact."""
    rng = np.random.default_rng(seed)
    values = {"a": 2, "b": 3, "c": 1}
    factors = [str(f) for f in rng.choice(["1", "2", "2", "3", "a", "b", "c"], rng.integers(1, 7))]
    shuffled = [str(f) for f in rng.permutation(factors)] if rng.random() < 0.3 else factors
    (source, before), (target, after) = (_grouped(order, values, rng) for order in (factors, shuffled))
    x = rng.integers(-9, 9, before).astype(np.float64)
    affine = spans(before, rng)
    moved = regroup(affine, source, target)
    if moved is not None:
        np.testing.assert_array_equal(applied(moved, x.reshape(after)), applied(affine, x).reshape(after))
    else:
        assert set("abc") & set(factors)


def _grouped(factors: Sequence[str], values: Mapping[str, int], rng: Any) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    """Neighbouring factors multiplied at random: as dimensions, and in numbers."""
    places = np.cumsum(rng.random(len(factors)) < 0.6).tolist()
    groups = [[f for f, at in zip(factors, places, strict=True) if at == place] for place in sorted(set(places))]
    dims = [product(Dim(int(f)) if f.isdigit() else Dim(1, (f,)) for f in group) for group in groups]
    return tuple(dims), tuple(int(np.prod([values[f] if f in values else int(f) for f in g])) for g in groups)


def test_reshape_by_attribute() -> None:
    """Reshape-1 has its target in an attribute."""
    step = pull_reshape(Case("Reshape", [(2, 6)], shape=[2, 3, 2], opset=1).facts, 0, some({1: 3, 2: 2}), 0)
    assert asked(step).sizes() == {1: 6}


def test_copies_need_the_same_map() -> None:
    """A pull through Expand or Tile along the axis that is copied, and through repeated indices, is refused."""
    assert code(Case("Expand", [(2, 1, 3)], [2, 4, 3]).pull(some({1: 4}))) is Code.NOT_PER_MAP
    assert code(Case("Expand", [(3,)], [2, 3]).pull(some({0: 2}))) is Code.NOT_PER_MAP
    assert code(Case("Expand", [(2, 3)], [2, 3], declared=[("N", "C")]).pull(some({1: 3}))) is Code.UNKNOWN_SHAPE
    assert code(Case("Tile", [(2, 3)], [1, 2]).pull(some({1: 6}))) is Code.NOT_PER_MAP
    pair = some({1: 3}).take(1, np.array([0, 1, 2, 0, 1, 2]))
    assert asked(Case("Tile", [(2, 3)], [1, 2]).pull(pair)).sizes() == {1: 3}
    twice = Case("Gather", [(2, 4)], [1, 3, -3], axis=1)
    assert code(twice.pull(some({1: 3}))) is Code.NOT_PER_MAP
    assert asked(twice.pull(some({1: 2}).take(1, np.array([0, 1, 0])))).sizes() == {1: 4}
    assert asked(twice.push(some({1: 4}))).sizes() == {1: 3}


def test_a_cut_along_another_axis() -> None:
    """A Slice drops the rest, so the map passes as it is; the other pieces of a Split must stay."""
    assert asked(Case("Slice", [(2, 3, 4)], [1], [3], [2]).pull(some({1: 3}))).axes == (1,)
    assert asked(Case("Split", [(2, 3, 4)], outputs=2, axis=2).pull(some({1: 3}), 1)).axes == (1, 2)
    unknown = Case("Split", [(2, 3, 4)], outputs=2, axis=2, declared=[(2, 3, "L")])
    assert code(unknown.pull(some({1: 3}))) is Code.UNKNOWN_SHAPE


def test_gather_with_indices_of_other_ranks() -> None:
    """Maps along other axes move by the rank of the indices; along the axis itself only rank 0 and 1 are carried."""
    case = Case("Gather", [(2, 4, 3)], [[0, 1], [2, 0]], axis=1)
    assert asked(case.push(some({2: 3}))).axes == (3,)
    assert asked(case.pull(some({0: 2, 3: 3}))).axes == (0, 2)
    assert code(case.push(some({1: 4}))) is Code.NOT_PER_MAP
    assert code(case.pull(some({2: 2}))) is Code.NOT_PER_MAP
    outside = Case("Gather", [(2, 4)], [1, 5], axis=1)
    assert code(outside.push(some({1: 4}))) is Code.SHAPE_MISMATCH
    assert code(outside.pull(some({1: 2}))) is Code.SHAPE_MISMATCH


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_joins_only_equal_groups(mode: str) -> None:
    """Pushed, b*b maps become one only with the same parameters; pulled, each is repeated in the mode's order."""
    case = Case("DepthToSpace", [(1, 12, 2, 2)], blocksize=2, mode=mode)
    assert code(case.push(some({1: 12}))) is Code.NOT_PER_MAP
    deep = asked(case.pull(some({1: 3})))
    assert asked(case.push(deep)).sizes() == {1: 3}
    other = Case("DepthToSpace", [(1, 12, 2, 2)], blocksize=2, mode="CRD" if mode == "DCR" else "DCR")
    assert code(other.push(deep)) is Code.NOT_PER_MAP
    assert code(Case("SpaceToDepth", [(1, 3, 4, 4)], blocksize=2).pull(some({1: 12}))) is Code.NOT_PER_MAP


def test_concat_needs_only_the_sizes_that_matter() -> None:
    """One branch of unknown size follows from the rest; a map that spans no such axis needs none."""
    shapes = [(2, 3, 2), (2, 4, 2)]
    case = Case("Concat", shapes, axis=1, declared=[("N", 3, "L"), ("N", "C", "L")])
    assert isinstance(case.pull(some({1: 7})), Step)
    assert code(case.push({0: some({1: 3})})) is Code.UNKNOWN_SHAPE
    assert isinstance(case.push({0: some({1: 3}), 1: some({1: 4})}), Step)
    unknown = Case("Concat", shapes, axis=1, declared=[None, None])
    assert isinstance(unknown.push({0: some({2: 2}), 1: some({2: 2})}), Step)
    assert isinstance(unknown.pull(some({2: 2})), Step)
    assert code(unknown.pull(some({1: 7}))) is Code.UNKNOWN_SHAPE
    assert code(PULL["Concat"](Case("Concat", shapes, axis=1).facts, 0, some({1: 9}), 0)) is Code.SHAPE_MISMATCH


def test_overridable_parameters_are_frozen_or_refused() -> None:
    """Indices that a caller may replace are no constants, unless inputs are frozen; then the step says which."""
    affine = some({1: 4})
    assert code(Case("Gather", [(2, 4)], [1, 2], axis=1, overridable=True).push(affine)) is Code.UNKNOWN_SHAPE
    step = Case("Gather", [(2, 4)], [1, 2], axis=1, overridable=True, freeze=True).push(affine)
    assert isinstance(step, Step)
    assert step.frozen == ("p0",)


@pytest.mark.parametrize(("name", "make"), MOVES, ids=[name for name, _ in MOVES])
def test_maps_that_do_not_fit_raise_nothing(name: str, make: Callable[[], Case]) -> None:
    """In an invalid model a map may have any sizes over any axes: the answer is still a step or a refusal."""
    case = make()
    rng = np.random.default_rng(len(name))
    for _ in range(40):
        axes = sorted(rng.choice(7, rng.integers(1, 4), replace=False).tolist())
        affine = some({axis: int(rng.integers(2, 6)) for axis in axes})
        pushed = PUSH[case.op](case.facts, 0, {0: affine, 1: some({1: 9})} if len(case.data) > 1 else {0: affine})
        assert isinstance(pushed, Step | Refusal)
        assert isinstance(PULL[case.op](case.facts, 0, affine, 0), Step | Refusal)


def test_shapes_that_contradict_the_map() -> None:
    """Parameters of another length than the axis are a mismatch."""
    split = Case("Split", [(2, 6)], outputs=2, axis=1)
    assert code(PUSH["Split"](split.facts, 0, {0: some({1: 4})})) is (Code.SHAPE_MISMATCH)
    assert code(PULL["Split"](split.facts, 0, some({1: 4}), 1)) is Code.SHAPE_MISMATCH
    tile = Case("Tile", [(2, 3)], [1, 2])
    assert code(PULL["Tile"](tile.facts, 0, some({1: 5}), 0)) is Code.SHAPE_MISMATCH
    slice_ = Case("Slice", [(2, 7)], [1], [4], [1])
    assert code(PULL["Slice"](slice_.facts, 0, some({1: 4}), 0)) is Code.SHAPE_MISMATCH
    concat = Case("Concat", [(2, 3, 2), (2, 3, 2)], axis=1)
    assert code(PUSH["Concat"](concat.facts, 0, {0: some({2: 3}), 1: some({2: 2})})) is Code.SHAPE_MISMATCH
    squeeze = Case("Squeeze", [(2, 1)], [1])
    assert code(PUSH["Squeeze"](squeeze.facts, 0, {0: some({1: 4})})) is Code.SHAPE_MISMATCH


def test_parameters_that_are_not_constant() -> None:
    """Axes, copies, cuts and indices that are computed at run time are not known."""
    for op in ("Squeeze", "Unsqueeze", "Tile", "Slice", "Gather"):
        case = Case(op, [(2, 3)], [1], [2], overridable=True)
        assert code(PULL[op](case.facts, 0, some({0: 2}), 0)) is Code.UNKNOWN_SHAPE
        assert code(PUSH[op](case.facts, 0, {0: some({0: 2})})) is Code.UNKNOWN_SHAPE
