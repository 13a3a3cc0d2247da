"""The affine map of a BatchNormalization, as pure numpy. No onnx, no I/O.

Ioffe & Szegedy 2015, Alg. 2, last line: at inference a BatchNormalization computes, for feature map c,

    y = gamma[c] / sqrt(var[c] + epsilon) * x + (beta[c] - gamma[c] * mean[c] / sqrt(var[c] + epsilon))
      = s[c] * x + t[c]

with the same s[c] and t[c] at every location of the map (section 3.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


MOST_MAPS = 2**24  # pairs of numbers; real networks have some thousands of channels


class TooManyMapsError(ValueError):
    """A map would have to be spelled out for more channels, or activations, than any real one has."""


@dataclass(frozen=True, slots=True)
class ChannelAffine:
    """The map x -> scale * x + shift, the same along every axis of x that is not in `axes`.

    Attributes:
        scale: float64, one dimension for each of `axes`: (C,) for a feature map, () for one number for all.
        shift: float64, of the same shape.
        axes: the axes of the value that scale and shift span, ascending; (1,) for a feature map of NCHW.
    """

    scale: Float64Array
    shift: Float64Array
    axes: tuple[int, ...] = (1,)

    @property
    def maps(self) -> int:
        """How many pairs of numbers there are."""
        return int(self.scale.size)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def only_scales(self) -> bool:
        """Whether the shift is zero everywhere."""
        return not self.shift.any()

    @classmethod
    def from_batchnorm(
        cls, gamma: Float64Array, beta: Float64Array, mean: Float64Array, var: Float64Array, epsilon: float
    ) -> "ChannelAffine":
        """The map of Alg. 2 for the parameters, float64 (C,) or (C, *locations), and the epsilon of the operator."""
        scale = gamma / np.sqrt(var + epsilon)
        return cls(scale, beta - scale * mean, tuple(range(1, 1 + scale.ndim)))

    @classmethod
    def uniform(cls, scale: float, shift: float) -> "ChannelAffine":
        """One pair of numbers for the whole value."""
        return cls(np.asarray(scale, np.float64), np.asarray(shift, np.float64), ())

    def after(self, first: "ChannelAffine") -> "ChannelAffine":
        """This map applied to the result of `first`: s2 * (s1 * x + t1) + t2.

        Raises:
            ValueError: the two have different sizes along an axis that both span.
        """
        if self.axes != first.axes:
            axes = tuple(sorted({*self.axes, *first.axes}))
            sizes = first.sizes() | self.sizes()
            return self.over(axes, sizes).after(first.over(axes, sizes))
        if self.scale.shape != first.scale.shape:
            raise ValueError(f"cannot compose {self.axes}{self.scale.shape} with {first.axes}{first.scale.shape}")
        return ChannelAffine(self.scale * first.scale, self.scale * first.shift + self.shift, self.axes)

    def equals(self, other: "ChannelAffine") -> bool:
        """Whether the two are the same map, however they are spelled out."""
        one, two = self.reduced(), other.reduced()
        same = one.axes == two.axes and np.array_equal(one.scale, two.scale)
        return same and np.array_equal(one.shift, two.shift)

    def united(self, other: "ChannelAffine") -> "ChannelAffine | None":
        """The map that is this one where `other` is the identity, and `other` where this one is.

        None where neither is, and they differ.
        """
        alike = self.axes == other.axes and self.scale.shape == other.scale.shape
        if alike and (self.scale == other.scale).all() and (self.shift == other.shift).all():
            return self
        axes = tuple(sorted({*self.axes, *other.axes}))
        sizes = self.sizes() | other.sizes()
        try:
            one, two = self.over(axes, sizes), other.over(axes, sizes)
        except ValueError:
            return None
        free = (one.scale == 1) & (one.shift == 0)
        same = (one.scale == two.scale) & (one.shift == two.shift)
        if not (free | same | ((two.scale == 1) & (two.shift == 0))).all():
            return None
        return ChannelAffine(np.where(free, two.scale, one.scale), np.where(free, two.shift, one.shift), axes)

    def scaling(self) -> "ChannelAffine":
        """The same without the shift."""
        return ChannelAffine(self.scale, np.zeros_like(self.shift), self.axes)

    def sizes(self) -> dict[int, int]:
        """Axis to size."""
        return dict(zip(self.axes, self.scale.shape, strict=True))

    def along(self, axis: int, size: int) -> "ChannelAffine | None":
        """The same map as one that spans `axis` alone, `size` long; None where it differs along another axis."""
        if self.axes == (axis,):
            return self if self.scale.size == size else None
        short = self.reduced()
        if short.axes == ():
            return short.over((axis,), {axis: size})
        return short if short.axes == (axis,) and short.scale.size == size else None

    def reduced(self) -> "ChannelAffine":
        """The same map without the axes along which it is constant."""
        scale, shift, axes = self.scale, self.shift, list(self.axes)
        for place in reversed(range(len(axes))):
            first = (scale.take([0], place), shift.take([0], place)) if scale.shape[place] else None
            if first is not None and (scale == first[0]).all() and (shift == first[1]).all():
                scale, shift = first[0].squeeze(place), first[1].squeeze(place)
                del axes[place]
        return ChannelAffine(scale, shift, tuple(axes))

    def over(self, axes: Sequence[int], sizes: Mapping[int, int]) -> "ChannelAffine":
        """The same map spelled out over `axes` (ascending, its own among them), each as long as `sizes` says.

        Raises:
            ValueError: a size does not fit.
            TooManyMapsError: that would be more than `MOST_MAPS` pairs.
        """
        own = self.sizes()
        open_shape = [own.get(axis, 1) for axis in axes]
        full = [sizes[axis] for axis in axes]
        check_maps(full)
        scale = np.broadcast_to(self.scale.reshape(open_shape), full)
        return ChannelAffine(scale, np.broadcast_to(self.shift.reshape(open_shape), full), tuple(axes))

    def placed(self, places: Mapping[int, int]) -> "ChannelAffine":
        """The same map for a value whose axis `a` is what axis `places[a]` is afterwards (Transpose, Squeeze)."""
        moved = [places[axis] for axis in self.axes]
        order = sorted(range(len(moved)), key=moved.__getitem__)
        if order == list(range(len(moved))):
            return ChannelAffine(self.scale, self.shift, tuple(moved))
        axes = tuple(moved[i] for i in order)
        return ChannelAffine(self.scale.transpose(order), self.shift.transpose(order), axes)

    def take(self, axis: int, indices: IntArray) -> "ChannelAffine":
        """The map for the value of which only `indices` along `axis` are kept, in that order."""
        if axis not in self.axes:
            return self
        place = self.axes.index(axis)
        check_maps([*self.scale.shape[:place], indices.size, *self.scale.shape[place + 1 :]])
        return ChannelAffine(self.scale.take(indices, place), self.shift.take(indices, place), self.axes)

    @classmethod
    def join(cls, parts: Sequence["ChannelAffine"], axis: int, lengths: Sequence[int]) -> "ChannelAffine":
        """The map for the values of `parts` laid end to end along `axis`, each as long there as `lengths` says.

        Raises:
            ValueError: the sizes of the parts along another axis differ.
        """
        axes = tuple(sorted({axis}.union(*(part.axes for part in parts))))
        sizes: dict[int, int] = {}
        for part in parts:
            sizes |= part.sizes()
        check_maps([sum(lengths), *(size for other, size in sizes.items() if other != axis)])
        spelled = [part.over(axes, sizes | {axis: size}) for part, size in zip(parts, lengths, strict=True)]
        place = axes.index(axis)
        scale = np.concatenate([part.scale for part in spelled], place)
        return cls(scale, np.concatenate([part.shift for part in spelled], place), axes).reduced()


def check_maps(sizes: Sequence[int]) -> None:
    """Make sure that a map of these sizes can be spelled out.

    Raises:
        TooManyMapsError: it has more than `MOST_MAPS` pairs.
    """
    if prod(sizes) > MOST_MAPS:
        raise TooManyMapsError(f"a map of {prod(sizes)} pairs of numbers")


IDENTITY = ChannelAffine.uniform(1.0, 0.0)
