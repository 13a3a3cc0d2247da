"""DepthToSpace and SpaceToDepth trade maps for locations: b*b maps of one are the locations of one map of the other.

    before:  c = Conv(x, W)      d = DepthToSpace <blocksize = 2> (c)      y = BatchNormalization(d, ...)
    after:   c = Conv(x, W')     y = DepthToSpace <blocksize = 2> (c)      W: (4 C, ...), y: (N, C, H, W)

Both are a Reshape, a Transpose and a Reshape, and a map goes through them as through those (`reshape.regroup`):

    deep    DCR  (N, b*b*C, H, W) -> (N, b, b, C, H, W)  --transpose 0, 3, 4, 1, 5, 2-->  (N, C, H, b, W, b)
            CRD  (N, C*b*b, H, W) -> (N, C, b, b, H, W)  --transpose 0, 1, 4, 2, 5, 3-->  (N, C, H, b, W, b)
    wide                                                                              ->  (N, C, H*b, W*b)

From wide to deep every map passes, its parameters repeated. From deep to wide it passes only where the b*b maps of
a group have the same parameters: else s and t would depend on the location. SpaceToDepth is the inverse of DCR.
Source: ONNX DepthToSpace-1, -11 (mode), -13; SpaceToDepth-1, -13.
"""

from collections.abc import Mapping, Sequence

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, text_attribute
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, not_per_map
from bnfold.rules.reshape import regroup
from bnfold.shapes import Dim

BATCH, HEIGHT, WIDTH = (Dim(1, (f"\0{name}",)) for name in ("batch", "height", "width"))
ORDERS = {"DCR": (0, 3, 4, 1, 5, 2), "CRD": (0, 1, 4, 2, 5, 3)}


def pull_depth_to_space(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for each map b*b times."""
    del output
    return _moved(facts, index, affine.reduced(), deepens=True, pulls=True)


def push_depth_to_space(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on, if each group of b*b maps has one pair of numbers."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, deepens=False, pulls=False)


def pull_space_to_depth(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, if each group of b*b maps has one pair of numbers."""
    del output
    return _moved(facts, index, affine.reduced(), deepens=False, pulls=True)


def push_space_to_depth(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand each map on b*b times."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, deepens=True, pulls=False)


def _moved(facts: GraphFacts, index: int, affine: ChannelAffine, *, deepens: bool, pulls: bool) -> Step | Refusal:
    node = facts.nodes[index]
    block = int_attribute(node, "blocksize", 1)
    mode = text_attribute(node, "mode", "DCR") if facts.op(index) == "DepthToSpace" else "DCR"
    known = mode in ORDERS and block >= 1 and all(axis < 4 for axis in affine.axes)
    moved = None
    if known:
        moved = _deepened(affine, block, mode) if deepens else _widened(affine, block, mode)
    if moved is not None:
        return carried(moved, pulls=pulls)
    group = f"each group of {block * block}"
    return not_per_map(facts, index, f"trades maps for locations, and the map is not the same in {group}")


def _deepened(affine: ChannelAffine, block: int, mode: str) -> ChannelAffine | None:
    """From the map of the wide value to that of the deep one."""
    maps = Dim(affine.sizes().get(1, 1))
    wide = (BATCH, maps, HEIGHT * Dim(block), WIDTH * Dim(block))
    apart = regroup(affine, wide, (BATCH, maps, HEIGHT, Dim(block), WIDTH, Dim(block)))
    if apart is None:
        return None
    moved = apart.placed(dict(enumerate(ORDERS[mode])))
    return _with_groups(moved, maps, block, mode, joins=True)


def _widened(affine: ChannelAffine, block: int, mode: str) -> ChannelAffine | None:
    """From the map of the deep value to that of the wide one; None where a group has several pairs of numbers."""
    maps = Dim(affine.sizes().get(1, block * block)).over(Dim(block * block))
    apart = None if maps is None else _with_groups(affine, maps, block, mode, joins=False)
    if apart is None or maps is None:
        return None
    moved = apart.placed({axis: place for place, axis in enumerate(ORDERS[mode])})
    wide = (BATCH, maps, HEIGHT * Dim(block), WIDTH * Dim(block))
    return regroup(moved, (BATCH, maps, HEIGHT, Dim(block), WIDTH, Dim(block)), wide)


def _with_groups(affine: ChannelAffine, maps: Dim, block: int, mode: str, *, joins: bool) -> ChannelAffine | None:
    """The Reshape of the deep value, to its groups or back."""
    side = Dim(block)
    inner: Sequence[Dim] = (side, side, maps) if mode == "DCR" else (maps, side, side)
    apart, joined = (BATCH, *inner, HEIGHT, WIDTH), (BATCH, maps * side * side, HEIGHT, WIDTH)
    return regroup(affine, apart, joined) if joins else regroup(affine, joined, apart)
