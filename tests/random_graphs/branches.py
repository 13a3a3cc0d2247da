"""Where paths part and meet: Concat, Add, Split, forks into several absorbers, RepVGG's siblings, residuals."""

from itertools import pairwise

import numpy as np

from tests.random_graphs.absorbers import absorber, bias, weight
from tests.random_graphs.builder import Builder, Value, need
from tests.random_graphs.carriers import carrier
from tests.random_graphs.sources import Mood, batchnorm, site
from tests.random_graphs.traps import blocker


def parallel(b: Builder, value: Value, maps: list[int]) -> list[Value]:
    """Absorbers of one value with outputs of these many maps, alike in all other sizes."""
    if value.rank == 2:
        need(value.axes == (1,))
        inner = value.maps
        return [
            b.one("Gemm", [value, weight(b, b.normal((inner, out), inner), 1), b.const(b.normal((out,)), "c")])
            for out in maps
        ]
    need(value.axes == (1,), value.rank >= 3)
    kernel = [min(b.pick([1, 1, 3]), size) for size in value.spatial]
    window = {"strides": [b.pick([1, 1, 2]) for _ in kernel]} if b.chance(0.4) else {}
    if b.chance(0.4):
        window["pads"] = [k // 2 for k in kernel] * 2
    made = []
    for out in maps:
        group = b.pick([g for g in range(1, out + 1) if out % g == 0 and value.maps % g == 0]) if b.chance(0.3) else 1
        numbers = b.normal((out, value.maps // group, *kernel), value.maps * len(kernel))
        inputs = [value, weight(b, numbers, 0), *bias(b, out)]
        made.append(b.one("Conv", inputs, group=group, kernel_shape=kernel, **window))
    return made


def meet(b: Builder, value: Value, mood: Mood) -> Value:
    """Several absorbers, something on each way, Concat or Add, and then a map."""
    count = b.whole(2, 3)
    if b.chance(0.5):
        branches = _on_the_way(b, parallel(b, value, [b.whole(1, 6) for _ in range(count)]), mood)
        joined = concat(b, branches)
    else:
        branches = _on_the_way(b, parallel(b, value, [b.whole(1, 8)] * count), mood)
        joined = add(b, branches)
    return site(b, carrier(b, joined, mood) if b.chance(0.4) else joined, mood)


def _on_the_way(b: Builder, branches: list[Value], mood: Mood) -> list[Value]:
    """Now and then an operator on one of them that keeps its shape."""
    place = b.whole(0, len(branches) - 1)
    if b.chance(0.15):
        branches[place] = site(b, branches[place], mood)
    elif b.chance(0.15):
        branches[place] = b.one("Identity", [branches[place]])
    elif mood.positive and mood.unshifted and b.chance(0.5):
        branches = [b.one("Relu", [branch]) for branch in branches]
    elif b.chance(0.07):
        branches[place] = blocker(b, branches[place])
    return branches


def concat(b: Builder, branches: list[Value]) -> Value:
    """Concat on the channel axis; now and then a value twice, or a constant among them."""
    names: list[Value | str] = list(branches)
    if b.chance(0.12):
        names.append(branches[0])
    if not b.free and b.chance(0.1):
        shape = (branches[0].shape[0], b.whole(1, 2), *branches[0].spatial)
        names.insert(b.whole(0, len(names)), b.const(b.normal(shape)))
    rank = branches[0].rank
    return b.one("Concat", names, axis=1 if b.opset < 11 or b.chance(0.7) else 1 - rank)


def concat_elsewhere(b: Builder, value: Value, mood: Mood) -> Value:
    """Concat on a spatial axis (every branch gets the whole map), then a map."""
    need(value.rank >= 3, value.axes == (1,))
    branches = parallel(b, value, [b.whole(1, 8)] * 2)
    branches += [branches[0]] if b.chance(0.15) else []
    need(branches[0].shape[2] <= 5)
    return site(b, b.one("Concat", branches, axis=2), mood)


def add(b: Builder, branches: list[Value]) -> Value:
    """Add, Sub or Sum of them; now and then of one value with itself, or with an operand that broadcasts."""
    first, *rest = branches
    if b.chance(0.1):
        return b.one(b.pick(["Add", "Sub", "Mul"]), [first, first])
    if first.rank >= 3 and b.chance(0.12):
        rest[-1] = b.one("GlobalAveragePool", [rest[-1]])
    if b.opset >= 8 and b.chance(0.3):
        return b.one("Sum", branches)
    for other in rest:
        pair = [first, other] if b.chance(0.5) else [other, first]
        first = b.one(b.pick(["Add", "Add", "Add", "Sub"]), pair)
    return first


def residual(b: Builder, value: Value, mood: Mood) -> Value:
    """Conv(x), a map, + x; the sum may get a map too."""
    need(value.axes == (1,), value.rank >= 3)
    side = site(b, parallel(b, value, [value.maps])[0], mood)
    need(side.shape == value.shape)
    made = b.one("Add", [side, value] if b.chance(0.5) else [value, side])
    return site(b, made, mood) if b.chance(0.3) else made


def part(b: Builder, value: Value, mood: Mood) -> Value:
    """A map, then Split (or Slices) of the channels, each piece into an absorber of its own; then together again."""
    need(value.axes == (1,), value.maps >= 2)
    value = site(b, value, mood)
    axis = 1 if value.rank == 2 or b.chance(0.8) else 2
    size = value.shape[axis]
    need(size >= 2, axis == 1 or b.free != "spatial")
    first = b.whole(1, size - 1)
    pieces = split(b, value, [first, size - first], axis)
    if b.chance(0.1):
        pieces[0] = b.one("Relu", [pieces[0]])
    if b.chance(0.07):
        b.outputs.append(pieces[0].name)
    made = [parallel(b, piece, [b.whole(1, 6)])[0] for piece in pieces]
    if b.chance(0.5) and made[0].shape[2:] == made[1].shape[2:]:
        return concat(b, made)
    return made[-1]


def split(b: Builder, value: Value, sizes: list[int], axis: int) -> list[Value]:
    """Split in the form of the opset, or a Slice for each piece."""
    if b.opset >= 10 and b.chance(0.3):
        starts = [0, *np.cumsum(sizes).tolist()]
        places = pairwise(starts)
        bounds = [[b.const(np.array([n], np.int64)) for n in (start, end, axis)] for start, end in places]
        return [b.one("Slice", [value, *names]) for names in bounds]
    if b.opset < 13:
        return b.node("Split", [value], len(sizes), axis=axis, split=sizes)
    return b.node("Split", [value, b.const(np.array(sizes, np.int64))], len(sizes), axis=axis)


def fork(b: Builder, value: Value, mood: Mood) -> Value:
    """A map that several absorbers read; now and then one reader that cannot take it."""
    value = site(b, value, mood)
    if value.rank == 2 or b.chance(0.5):
        made = parallel(b, value, [b.whole(1, 6)] * 2)
        made = [add(b, made)] if b.chance(0.5) else made
    else:
        made = [absorber(b, value, padded=not mood_allows(mood)) for _ in range(2)]
    if b.chance(0.12):
        blocker(b, value)
    return made[-1]


def mood_allows(mood: Mood) -> bool:
    """Whether padding would stand in the way of a map of this mood."""
    return not mood.unshifted


def sibling(b: Builder, value: Value, mood: Mood) -> Value:
    """RepVGG: Conv(x) + Conv(x) + BN(x), often of the kind that the Conv can take in, in any order of the sum."""
    need(value.axes == (1,), value.rank >= 3)
    maps = value.maps
    group = b.pick([1, 1, maps] + [g for g in range(1, maps + 1) if maps % g == 0])
    kernel, dilation = b.pick([1, 3, 3, 3, 2, 5]), b.pick([1, 1, 1, 2])
    reach = dilation * (kernel - 1)
    begin = b.pick([reach // 2, reach // 2, b.whole(0, reach)])
    good = b.chance(0.75)
    end = reach - begin if good else b.whole(0, 3)
    rank = len(value.spatial)
    numbers = b.normal((maps, maps // group, *[kernel] * rank), maps // group * kernel**rank)
    main = b.one(
        "Conv", [value, weight(b, numbers, 0), *bias(b, maps)], group=group, dilations=[dilation] * rank,
        pads=[begin] * rank + [end] * rank, strides=None if good or b.chance(0.5) else [2] * rank,
    )  # fmt: skip
    main = site(b, main, mood) if b.chance(0.5) else main
    other = batchnorm(b, value, mood) if b.chance(0.8) else site(b, value, mood)
    b.planted += 1
    terms = [main, other]
    if b.chance(0.4):
        terms.insert(b.whole(0, 2), _pointwise(b, value, group))
    if b.opset >= 8 and b.chance(0.25):
        return b.one("Sum", terms)
    total = terms[0]
    for term in terms[1:]:
        total = b.one("Add", [total, term] if b.chance(0.5) else [term, total])
    return total


def _pointwise(b: Builder, value: Value, group: int) -> Value:
    """The 1 x 1 Conv beside it, sometimes with its BatchNormalization."""
    maps, rank = value.maps, len(value.spatial)
    numbers = b.normal((maps, maps // group, *[1] * rank), maps // group)
    side = b.one("Conv", [value, weight(b, numbers, 0), *bias(b, maps)], group=group)
    if b.chance(0.5):
        b.planted += 1
        return batchnorm(b, side, Mood())
    return side
