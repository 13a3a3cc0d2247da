"""The affine map of a BatchNormalization, as pure numpy. No onnx, no I/O.

Ioffe & Szegedy 2015, Alg. 2, last line: at inference a BatchNormalization computes, for feature map c,

    y = gamma[c] / sqrt(var[c] + epsilon) * x + (beta[c] - gamma[c] * mean[c] / sqrt(var[c] + epsilon))
      = s[c] * x + t[c]

with the same s[c] and t[c] at every location of the map (section 3.2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChannelAffine:
    """The map x -> scale * x + shift, one pair of numbers for each feature map.

    Attributes:
        scale: float64 (C,).
        shift: float64 (C,).
        axes: the axes of the value that scale and shift span; (1,) for a feature map of NCHW.
    """

    scale: Float64Array
    shift: Float64Array
    axes: tuple[int, ...] = (1,)

    @property
    def maps(self) -> int:
        """How many feature maps the affine is defined for."""
        return int(self.scale.size)

    def after(self, first: "ChannelAffine") -> "ChannelAffine":
        """This map applied to the result of `first`: s2 * (s1 * x + t1) + t2.

        Raises:
            ValueError: the two span different axes or numbers of maps.
        """
        if self.axes != first.axes or self.scale.shape != first.scale.shape:
            raise ValueError(f"cannot compose {self.axes}{self.scale.shape} with {first.axes}{first.scale.shape}")
        return ChannelAffine(self.scale * first.scale, self.scale * first.shift + self.shift, self.axes)

    @classmethod
    def from_batchnorm(
        cls, gamma: Float64Array, beta: Float64Array, mean: Float64Array, var: Float64Array, epsilon: float
    ) -> "ChannelAffine":
        """The map of Alg. 2 for the parameters (all float64 (C,)) and the epsilon of a BatchNormalization."""
        scale = gamma / np.sqrt(var + epsilon)
        return cls(scale, beta - scale * mean)
