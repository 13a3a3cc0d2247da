"""Faults in the weight and bias that come out of a fold.

Each kind is a function of a `Core` that changes its `weight` or `bias`, or raises `NotApplicable`.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

from tests.mutations.build import Network, Site
from tests.mutations.evaluate import attributes
from tests.mutations.folder import Core, Twist, fold, groups, spread
from tests.mutations.maps import NotApplicable, neighbours

ArrayFault = Callable[[Core, np.random.Generator], None]


def need(condition: object) -> None:
    """Raise `NotApplicable` unless the condition holds."""
    if not condition:
        raise NotApplicable


def _slice(core: Core, place: int) -> tuple:
    return (slice(None),) * core.axis + (place,)


def _one_map(core: Core, rng: np.random.Generator) -> tuple:
    return _slice(core, int(rng.integers(core.weight.shape[core.axis])))


def _element(array: np.ndarray, rng: np.random.Generator) -> tuple:
    return tuple(int(rng.integers(size)) for size in array.shape)


def bias_off(core: Core, rng: np.random.Generator) -> None:
    """One map's bias off by 1e-4 of the largest."""
    core.bias[_element(core.bias, rng)] += 1e-4 * np.abs(core.bias).max()


def bias_missing(core: Core, rng: np.random.Generator) -> None:
    """The product's own bias is lost."""
    need(core.old_bias.any())
    core.bias = core.bias - _old_part(core)


def bias_twice(core: Core, rng: np.random.Generator) -> None:
    """The product's own bias is added twice."""
    need(core.old_bias.any())
    core.bias = core.bias + _old_part(core)


def bias_not_scaled(core: Core, rng: np.random.Generator) -> None:
    """The product's own bias goes in as it is."""
    need(core.old_bias.any() and _behind(core))
    core.bias = core.bias - _old_part(core) + attributes(core.node).get("beta", 1.0) * core.old_bias


def _behind(core: Core) -> bool:
    """Whether the map follows the product; where there are as many channels as maps, the axis tells."""
    first = core.node.op_type == "Conv" or attributes(core.node).get("transB", 0)
    return core.axis == (0 if first else 1)


def _old_part(core: Core) -> np.ndarray:
    beta = attributes(core.node).get("beta", 1.0)
    return beta * core.old_bias * (core.given.scale if _behind(core) else 1.0)


def beta_twice(core: Core, rng: np.random.Generator) -> None:
    """A Gemm's beta goes in twice."""
    beta = attributes(core.node).get("beta", 1.0)
    need(beta != 1.0)
    core.bias = core.bias + (beta - 1) * _old_part(core)


def alpha_twice(core: Core, rng: np.random.Generator) -> None:
    """A Gemm's alpha goes into the weight and stays."""
    alpha = attributes(core.node).get("alpha", 1.0)
    need(alpha != 1.0)
    core.weight = core.weight * alpha


def shift_unweighted(core: Core, rng: np.random.Generator) -> None:
    """A shift of the input is added to the output as it is."""
    need(not _behind(core) and core.bias.shape == core.given.shift.shape)
    core.bias = core.old_bias + core.given.shift


def shift_lost(core: Core, rng: np.random.Generator) -> None:
    """A shift of the input never reaches the output."""
    need(not _behind(core))
    core.bias = _old_part(core) + np.zeros_like(core.bias)


def one_tap(core: Core, rng: np.random.Generator) -> None:
    """One number of the weight off by one per cent."""
    core.weight[_element(core.weight, rng)] *= 1.01


def one_map_not_scaled(core: Core, rng: np.random.Generator) -> None:
    """One map, or channel, keeps its old weights."""
    place = _one_map(core, rng)
    core.weight[place] = core.old[place]


def not_scaled(core: Core, rng: np.random.Generator) -> None:
    """Only the bias takes the map in."""
    core.weight = core.old.copy()


def scaled_twice(core: Core, rng: np.random.Generator) -> None:
    """The weight takes the scale in twice."""
    core.weight = core.weight * spread(core.node, core.old, core.given.scale, "behind" if _behind(core) else "before")


def wrong_axis(core: Core, rng: np.random.Generator) -> None:
    """The scale goes along the other axis of a square weight."""
    need(core.old.shape[0] == core.old.shape[1] == len(core.given.scale))
    core.weight = core.old * spread(core.node, core.old, core.given.scale, "before" if _behind(core) else "behind")


def group_ignored(core: Core, rng: np.random.Generator) -> None:
    """Every group gets the factors of the first."""
    group = groups(core.node)
    need(group > 1)
    first = np.tile(core.given.scale[: len(core.given.scale) // group], group)
    core.weight = core.old * spread(core.node, core.old, first, "behind" if _behind(core) else "before")


def rounded_to(dtype) -> ArrayFault:
    """The weight rounded to a coarser type than its own."""

    def wrong(core: Core, rng: np.random.Generator) -> None:
        core.weight = core.weight.astype(dtype).astype(np.float64)

    return wrong


def one_is(number: float) -> ArrayFault:
    """One number of the weight replaced."""

    def wrong(core: Core, rng: np.random.Generator) -> None:
        core.weight[_element(core.weight, rng)] = number

    return wrong


def kernel_turned(core: Core, rng: np.random.Generator) -> None:
    """Convolution taken for correlation: the kernel by half a turn."""
    need(core.weight.ndim == 4 and core.weight.shape[2] > 1)
    core.weight = core.weight[:, :, ::-1, ::-1]


def kernel_transposed(core: Core, rng: np.random.Generator) -> None:
    """Height and width of the kernel exchanged."""
    need(core.weight.ndim == 4 and core.weight.shape[2] == core.weight.shape[3] > 1)
    core.weight = core.weight.swapaxes(2, 3)


def weight_transposed(core: Core, rng: np.random.Generator) -> None:
    """Rows and columns, or maps and channels, of a square weight exchanged."""
    need(core.weight.shape[0] == core.weight.shape[1])
    core.weight = core.weight.swapaxes(0, 1)


def maps_exchanged(core: Core, rng: np.random.Generator) -> None:
    """The weights of two neighbouring maps exchanged."""
    order = neighbours(np.arange(core.weight.shape[core.axis]), rng)
    core.weight = np.take(core.weight, order, axis=core.axis)


def bias_exchanged(core: Core, rng: np.random.Generator) -> None:
    """The biases of two neighbouring maps exchanged."""
    core.bias = neighbours(core.bias, rng)


def one_map(factor: float) -> ArrayFault:
    """The weights of one map times a number."""

    def wrong(core: Core, rng: np.random.Generator) -> None:
        core.weight[_one_map(core, rng)] *= factor

    return wrong


def bias_rounded(core: Core, rng: np.random.Generator) -> None:
    """The bias, not the weight, in float16."""
    core.bias = core.bias.astype(np.float16).astype(np.float64)


ARRAYS: dict[str, ArrayFault] = {
    "bias of one map off by 1e-4": bias_off,
    "bias missing": bias_missing,
    "bias twice": bias_twice,
    "bias not scaled": bias_not_scaled,
    "bias rounded to float16": bias_rounded,
    "biases of neighbours exchanged": bias_exchanged,
    "beta of a Gemm twice": beta_twice,
    "alpha of a Gemm twice": alpha_twice,
    "shift of the input not weighted": shift_unweighted,
    "shift of the input lost": shift_lost,
    "one tap off by 1 %": one_tap,
    "one map not scaled": one_map_not_scaled,
    "weight not scaled": not_scaled,
    "weight scaled twice": scaled_twice,
    "weight scaled along the other axis": wrong_axis,
    "groups ignored": group_ignored,
    "weight rounded to float16": rounded_to(np.float16),
    "weight rounded to bfloat16": rounded_to(ml_dtypes.bfloat16),
    "one weight NaN": one_is(np.nan),
    "one weight infinite": one_is(np.inf),
    "one weight zero": one_is(0.0),
    "kernel turned": kernel_turned,
    "kernel transposed": kernel_transposed,
    "weight transposed": weight_transposed,
    "weights of neighbours exchanged": maps_exchanged,
    "weights of one map zero": one_map(0.0),
    "weights of one map with the other sign": one_map(-1.0),
}


def by_arrays(fault: ArrayFault) -> Callable[[Network, Site, np.random.Generator], tuple]:
    """What makes a mutant of a fault in weight or bias: the folded model, and the value that is wrong."""

    def make(network: Network, site: Site, rng: np.random.Generator) -> tuple:
        core = int(rng.integers(len(site.cores)))
        return fold(network, twist=Twist(site, arrays=lambda c: fault(c, rng), core=core)), site.value

    return make
