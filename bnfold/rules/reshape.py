"""Reshape and Flatten carry a map as far as the shapes tell where each feature map goes.

    before:  c = Conv(x, W)      r = Reshape(c, [0, 2, 8, -1])      y = BatchNormalization over 16 maps
    after:   c = Conv(x, W')     y = Reshape(c, [0, 2, 8, -1])

The elements keep their order. Where a product of leading sizes is the same product in both shapes, the axes
before it and those behind it do not mix, so both shapes fall into blocks with as many elements on either side:

    (N, C, H, W) -> (N, 2, C/2, H*W)     N | C | H, W   and   N | 2, C/2 | H*W

A map spans some axes of some blocks. A block of one axis on each side is renumbered. In any other the map is
spelled out over the whole block and reshaped like the data: a channel split makes a map over two axes, a merge
with n repeats each pair n times. Axes along which the result is constant are dropped.
Source: ONNX Reshape-1, -5, -13, -14, -19, -21; Flatten-1, -9, -11, -13, -21.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, not_per_map, unknown
from bnfold.shapes import ONE, Dim, Shape, sizes

MOST_MAPS = 2**22  # pairs of numbers that a map is spelled out to
Block = tuple[tuple[int, ...], tuple[int, ...]]


def pull_reshape(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the map in the input's shape."""
    del output
    return _moved(facts, index, affine.reduced(), pulls=True)


def push_reshape(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand on the map in the output's shape."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, pulls=False)


def _moved(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    if not affine.axes:
        return carried(affine, pulls=pulls)
    before, after = facts.shapes.of(facts.only_input(index)), facts.shapes.of(facts.nodes[index].output[0])
    if before is None or after is None or any(dim.factor == 0 for dim in (*before, *after)):
        return unknown(facts, index, "the shape of the input" if before is None else "the shape of the output")
    moved = regroup(affine, after, before) if pulls else regroup(affine, before, after)
    if moved is not None:
        return carried(moved, pulls=pulls)
    if sizes(before) is None or sizes(after) is None:
        return unknown(facts, index, "a size in the shapes")
    return not_per_map(facts, index, f"mixes the maps with the elements of {list(sizes(before) or ())}")


def regroup(affine: ChannelAffine, source: Shape, target: Shape) -> ChannelAffine | None:
    """The map for a value of shape `target` that holds the elements of one of shape `source`, in order.

    `affine` is for the value of shape `source`. None where the shapes do not tell, or the result would be huge.
    Every size is taken to be at least 1.
    """
    affine = affine.reduced()
    own = affine.sizes()
    used = [block for block in _blocks(source, target) if own.keys() & set(block[0])]
    if len([axis for block in used for axis in block[0] if axis in own]) < len(own):
        return None
    lengths: dict[int, int] = {}
    shape: list[int] = []
    for block in used:
        inner = _lengths(own, block, source, target)
        if inner is None:
            return None
        lengths |= zip(block[0], inner[0], strict=True)
        shape += inner[1]
    if prod(shape) > MOST_MAPS:
        return None
    spelled = affine.over([axis for block in used for axis in block[0]], lengths)
    axes = tuple(axis for block in used for axis in block[1])
    return ChannelAffine(spelled.scale.reshape(shape), spelled.shift.reshape(shape), axes).reduced()


def _lengths(
    own: Mapping[int, int], block: Block, source: Shape, target: Shape
) -> tuple[Sequence[int], Sequence[int]] | None:
    """The sizes of the axes of a block in both shapes; None where they are not known or do not fit the map."""
    inside, outside = block
    if any(source[axis].size not in (own[axis], None) for axis in inside if axis in own):
        return None
    if len(inside) == len(outside) == 1:
        size = own[inside[0]]
        return ([size], [size]) if target[outside[0]].size in (size, None) else None
    before = sizes(tuple(source[axis] for axis in inside))
    after = sizes(tuple(target[axis] for axis in outside))
    if before is None or after is None or prod(before) != prod(after):
        return None
    return before, after


def _blocks(source: Shape, target: Shape) -> list[Block]:
    """The axes of both shapes, those of size 1 left out, in the smallest groups that do not mix.

    Products from the front are compared first; in what is left, products from the back. Without the sizes of 1
    no two products of one shape are the same, so that at most one pair of places matches.
    """
    inside = [axis for axis, dim in enumerate(source) if dim != ONE]
    outside = [axis for axis, dim in enumerate(target) if dim != ONE]
    cuts = [(0, 0), *_matches([source[a] for a in inside], [target[a] for a in outside])]
    i, j = cuts[-1]
    back = _matches([source[a] for a in reversed(inside[i:])], [target[a] for a in reversed(outside[j:])])
    cuts += [(len(inside) - m, len(outside) - n) for m, n in reversed(back)]
    cuts.append((len(inside), len(outside)))
    return [(tuple(inside[i:k]), tuple(outside[j:n])) for (i, j), (k, n) in pairwise(cuts) if (i, j) != (k, n)]


def _matches(first: Sequence[Dim], second: Sequence[Dim]) -> list[tuple[int, int]]:
    """After how many axes of either shape the products are the same."""
    places = {dim: place for place, dim in enumerate(accumulate(second, Dim.__mul__), 1)}
    products = enumerate(accumulate(first, Dim.__mul__), 1)
    return [(place, places[dim]) for place, dim in products if dim in places]
