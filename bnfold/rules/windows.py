"""Where the windows of a Conv or a pooling lie: whether one reads padding, whether one reads nothing else.

    y = AveragePool <kernel_shape=[3], strides=[2], pads=[1, 0], ceil_mode=1> (x)      x: (N, C, 4)

    positions   -1 | 0  1  2  3 | 4        window i reads the taps i*s - begin + d*j, j = 0 .. k-1:
    window 0     x   x  x                  its reach is d (k-1)
    window 1            x  x  x
    window 2                  x   x  x     (only with ceil_mode: it goes beyond the end)

A constant shift t in x becomes the sum of the taps' weights times t in each window, the same in all of them
exactly if no tap lies outside [0, n). Where n is not known, the worst that is possible is assumed.
Source: ONNX Conv-11, AveragePool-19, MaxPool-12; onnxruntime's ComputePad and PoolAttributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, ints_attribute, text_attribute


@dataclass(frozen=True, slots=True)
class Axis:
    """The windows along one spatial axis.

    Attributes:
        size: of the input; None where it is not known.
        taps: of a window.
        stride: from one window to the next.
        dilation: from one tap to the next.
        pads: at the beginning and at the end; None for SAME, where they follow from the size.
        ceil: an incomplete last window is kept.
    """

    size: int | None
    taps: int
    stride: int
    dilation: int
    pads: tuple[int, int] | None
    ceil: bool

    @property
    def reach(self) -> int:
        """From the first tap of a window to its last."""
        return self.dilation * (self.taps - 1)

    @property
    def reads_padding(self) -> bool:
        """Whether a tap may lie outside the input."""
        if self.pads is None:
            return self._same_pads
        return self.pads[0] > 0 or self._overhang + self.reach > 0

    @property
    def may_miss(self) -> bool:
        """Whether all taps of a window may lie outside the input.

        A window that begins inside does not. One that begins before the input and ends at or behind its first
        element does not either, unless the input fits between two taps.
        """
        begins_before = self.pads is None or self.pads[0] > 0
        fits_between = self.dilation > 1 and (self.size is None or self.size < self.dilation)
        if self.pads is None:
            return self.reach > 0 and fits_between
        return self.pads[0] > self.reach or self._overhang > 0 or (begins_before and fits_between)

    @property
    def _overhang(self) -> int:
        """How far the first tap of the last window lies behind the last element: 0 on it, negative before it.

        That is not more than end - reach where only whole windows count, and stride - 1 more with ceil_mode.
        The rule that a window must not begin in the padding at the end is not used: runtimes came to it late.
        """
        assert self.pads is not None
        begin, end = self.pads
        if self.size is None:
            return end - self.reach + (self.stride - 1 if self.ceil else 0)
        room = self.size + begin + end - self.reach - 1
        last = -(-room // self.stride) if self.ceil else room // self.stride
        return last * self.stride - begin - (self.size - 1)

    @property
    def _same_pads(self) -> bool:
        """Whether SAME pads at all; by the spec, and by onnxruntime's poolings, which forget the dilation."""
        if self.reach == 0:
            return False
        if self.size is None:
            return True
        rest = (-(-self.size // self.stride) - 1) * self.stride - self.size
        return rest + max(self.reach + 1, self.taps) > 0


def reads_padding(facts: GraphFacts, index: int, kernel: Sequence[int]) -> bool:
    """Whether a window of the Conv or pooling, `kernel` taps wide on each spatial axis, may read padding."""
    axes = windows(facts, index, kernel)
    return axes is None or any(axis.reads_padding for axis in axes)


def window_wholly_in_padding(facts: GraphFacts, index: int, kernel: Sequence[int]) -> bool:
    """Whether a window of the Conv or pooling may read nothing but padding."""
    axes = windows(facts, index, kernel)
    return axes is None or any(axis.may_miss for axis in axes)


def windows(facts: GraphFacts, index: int, kernel: Sequence[int]) -> list[Axis] | None:
    """The windows along each spatial axis; None where the node's attributes make no sense."""
    node, count = facts.nodes[index], len(kernel)
    mode = text_attribute(node, "auto_pad", "NOTSET") or "NOTSET"
    strides, dilations = (ints_attribute(node, name) or (1,) * count for name in ("strides", "dilations"))
    pads = (ints_attribute(node, "pads") if mode == "NOTSET" else None) or (0,) * (2 * count)
    if not count or not len(strides) == len(dilations) == count or len(pads) != 2 * count:
        return None
    if min(*kernel, *strides, *dilations, 1) < 1 or min(*pads, 0) < 0:
        return None
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return None
    shape = facts.shapes.of(node.input[0])
    if shape is not None and len(shape) != count + 2:
        return None
    same = mode.startswith("SAME")
    ceil = not same and int_attribute(node, "ceil_mode", 0) != 0
    return [
        Axis(
            shape[2 + i].size if shape is not None else None,
            kernel[i],
            strides[i],
            dilations[i],
            None if same else (pads[i], pads[count + i]),
            ceil,
        )
        for i in range(count)
    ]
