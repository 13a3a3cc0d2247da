"""What may be folded: one file for each kind of source."""

from dataclasses import dataclass, replace

from bnfold.affine import ChannelAffine
from bnfold.rounding import Array


@dataclass(frozen=True, slots=True)
class Site:
    """A run of nodes that computes one affine map of its input: a BatchNormalization, or a chain.

    Attributes:
        kind: "BatchNormalization" or "chain".
        nodes: the nodes, in order.
        slot: the input of the first one that is the value mapped.
    """

    kind: str
    nodes: tuple[int, ...]
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """The map of one site.

    Attributes:
        affine: the map, along the axes of the site's input.
        overridable: the overridable initializers that it was read from.
        scales_maps: one of its factors has several elements, one for each feature map.
        per_map: one of its constants has several elements, one for each feature map.
        parameters: gamma, beta, mean and var of a BatchNormalization, as they are stored; () for a chain.
        epsilon: of a BatchNormalization.
    """

    affine: ChannelAffine
    overridable: tuple[str, ...] = ()
    scales_maps: bool = True
    per_map: bool = True
    parameters: tuple[Array, ...] = ()
    epsilon: float = 0.0

    def scaling(self) -> "Source":
        """The same without the shift."""
        return replace(self, affine=self.affine.scaling())
