"""Conv(x) + map(x): the map is one tap of the kernel, where there is one for every position; and --merge-branches."""

import numpy as np
import pytest

from tests.conftest import initializer, ops
from tests.folding import check, fold, graph

PAIR = "[conv] c = Conv <{}> (x, w, b)\n[id] n = BN <maps = {}> (x)\n[add] y = Add ({})"
# x is a model input, and an Add or Sub scales its result only where both branches come with that scale.
UNEVEN = "consumer-cannot-absorb"
# attributes, weight, x, and the tap of W that the map is added to
TAPS = {
    "1x1": ("", (4, 4, 1, 1), (2, 4, 6, 6), (0, 0)),
    "3x3": ("pads = [1, 1, 1, 1]", (4, 4, 3, 3), (2, 4, 6, 6), (1, 1)),
    "1d": ("pads = [2, 2]", (4, 4, 5), (2, 4, 9), (2,)),
    "3d": ("pads = [1, 0, 1, 1, 0, 1]", (4, 4, 3, 1, 3), (1, 4, 4, 5, 4), (1, 0, 1)),
    "asymmetric": ("pads = [0, 2, 2, 0]", (4, 4, 3, 3), (2, 4, 6, 6), (0, 2)),
    "even": ("pads = [0, 1, 1, 0]", (4, 4, 2, 2), (2, 4, 6, 6), (0, 1)),
    "dilated": ("pads = [2, 3, 2, 3], dilations = [2, 3]", (4, 4, 3, 3), (2, 4, 8, 8), (1, 1)),
    "dilated_asymmetric": ("pads = [4, 0, 0, 6], dilations = [2, 3]", (4, 4, 3, 3), (2, 4, 8, 8), (2, 0)),
    "groups": ("pads = [1, 1, 1, 1], group = 2", (4, 2, 3, 3), (2, 4, 6, 6), (1, 1)),
    "depthwise": ("pads = [1, 1, 1, 1], group = 4", (4, 1, 3, 3), (2, 4, 6, 6), (1, 1)),
    "same_upper": ('auto_pad = "SAME_UPPER"', (4, 4, 3, 3), (2, 4, 6, 6), (1, 1)),
    "same_upper_even": ('auto_pad = "SAME_UPPER"', (4, 4, 2, 4), (2, 4, 6, 6), (0, 1)),
    "same_lower_even": ('auto_pad = "SAME_LOWER"', (4, 4, 2, 4), (2, 4, 6, 6), (1, 2)),
    "valid_1x1": ('auto_pad = "VALID"', (4, 4, 1, 1), (2, 4, 6, 6), (0, 0)),
    "strides_written_out": ("pads = [1, 1, 1, 1], strides = [1, 1]", (4, 4, 3, 3), (2, 4, 6, 6), (1, 1)),
}
# what Add accepts all the same, because sizes agree or one is 1
TRAPS = {
    "output_of_1x1_broadcasts": ("", (4, 4, 6, 6), (2, 4, 6, 6)),
    "x_of_1x1_broadcasts": ("pads = [1, 1, 1, 1]", (4, 4, 1, 1), (2, 4, 1, 1)),
    "pads_symmetric_too_small": ("pads = [1, 1, 1, 1]", (4, 4, 8, 8), (2, 4, 6, 6)),
    "pad_between_dilated_taps": ("pads = [1, 3], dilations = [2]", (4, 4, 3), (2, 4, 8)),
    "stride_of_one_position": ("pads = [1, 1, 1, 1], strides = [2, 2]", (4, 4, 3, 3), (2, 4, 1, 1)),
    "stride_down_to_one": ("pads = [1, 1, 1, 1], strides = [9, 9]", (4, 4, 3, 3), (2, 4, 6, 6)),
    "one_map_out_broadcasts": ("pads = [1, 1, 1, 1]", (1, 4, 3, 3), (2, 4, 6, 6)),
    "many_maps_out_of_one": ("pads = [1, 1, 1, 1]", (4, 1, 3, 3), (2, 1, 6, 6)),
}


@pytest.mark.parametrize("order", ["c, n", "n, c"])
@pytest.mark.parametrize("case", TAPS)
def test_the_map_is_one_tap(case, order):
    """Added at the tap that reads the output's own position, of the right map of the group; the Add goes."""
    attributes, w, x, tap = TAPS[case]
    proto = graph(PAIR.format(attributes, 4, order), x, w=w, b=(4,))
    result = check(proto, nodes="Conv", limit=4e-6)
    assert (result.folded[0].direction, result.folded[0].into) == ("sibling", "Conv 'conv'")
    changed = initializer(result.model, result.model.graph.node[0].input[1]) != initializer(proto, "w")
    assert {tuple(place) for place in np.argwhere(changed)} == {(c, c % w[1], *tap) for c in range(4)}


@pytest.mark.parametrize("case", TRAPS)
def test_traps(case):
    """A broadcast, a stride, a pad beside the taps: the sum is legal and the map is no tap."""
    attributes, w, x = TRAPS[case]
    proto = graph(PAIR.format(attributes, x[1], "c, n"), x, w=w, b=(w[0],))
    result = check(proto, folded=0, left=[UNEVEN])
    assert "'add'" in result.refused[0].message.split("; upstream: ")[0]


@pytest.mark.parametrize("more", ["z = Relu (x)", "k = Conv (x, w, b)\nz = Relu (k)", "z = Add (x, x)"])
def test_other_readers_of_x_do_not_matter(more):
    """x stays what it is."""
    proto = graph(
        PAIR.format("pads = [1, 1, 1, 1]", 4, "c, n") + "\n" + more, w=(4, 4, 3, 3), b=(4,), outputs=("y", "z")
    )
    result = check(proto, limit=4e-6)
    assert "BatchNormalization" not in ops(result.model)


@pytest.mark.parametrize("more", ["z = Relu (n)", "z = Relu (c)", "n", "c"])
def test_readers_of_the_branches_do_matter(more):
    """What the Conv or the map makes is read elsewhere, or is an output: it must stay."""
    text = PAIR.format("pads = [1, 1, 1, 1]", 4, "c, n") + ("\n" + more if "=" in more else "")
    code = "no-producer" if more == "n" else UNEVEN
    check(graph(text, w=(4, 4, 3, 3), b=(4,), outputs=("y", more[0])), folded=0, left=[code])


def test_a_plain_residual_is_no_site():
    """Conv(x) + x: nothing to find, not even listed."""
    proto = graph("c = Conv <pads = [1, 1, 1, 1]> (x, w)\ny = Add (c, x)", w=(4, 4, 3, 3))
    assert not check(proto, folded=0, sources="all").report.sites


def test_the_same_conv_on_another_input_is_no_sibling():
    """Conv(v) + BN(x): there is no tap of x."""
    text = PAIR.format("pads = [1, 1, 1, 1]", 4, "c, n").replace("(x, w, b)", "(v, w, b)")
    check(graph(text, w=(4, 4, 3, 3), b=(4,), inputs={"v": (2, 4, 6, 6)}), folded=0, left=[UNEVEN])


@pytest.mark.parametrize("order", ["c, n", "n, c"])
def test_subtraction(order):
    """Conv(x) - BN(x): the tap with the other sign; BN(x) - Conv(x) folds or stays, and is the same in any case."""
    text = PAIR.format("pads = [1, 1, 1, 1]", 4, order).replace("= Add (", "= Sub (")
    proto = graph(text, w=(4, 4, 3, 3), b=(4,))
    folded = 1 if order == "c, n" else len(fold(proto).folded)
    check(proto, folded=folded, left=[UNEVEN] * (1 - folded), limit=4e-6)


SUMS = {
    "right": "a = Add (c, d)\ny = Add (a, n)",
    "left": "a = Add (n, d)\ny = Add (c, a)",
    "in_the_middle": "a = Add (d, n)\ny = Add (a, c)",
    "sum_of_three": "y = Sum (c, d, n)",
    "sum_in_front": "y = Sum (n, c, d)",
    "deep": "a = Add (n, d)\ne = Add (a, k)\ny = Add (e, c)",
    "sum_and_add": "a = Sum (d, k, n)\ny = Add (c, a)",
}


@pytest.mark.parametrize("case", SUMS)
def test_through_several_sums(case):
    """Adds and Sums in any nesting: one node less, and only values in between get new names."""
    text = (
        "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)\nd = Conv (x, v)\nk = Relu (x)\nn = BN <maps = 4> (x)\n"
        + SUMS[case]
    )
    text = text if "k)" in SUMS[case] or "k," in SUMS[case] else text.replace("k = Relu (x)\n", "")
    proto = graph(text, w=(4, 4, 3, 3), b=(4,), v=(4, 4, 1, 1))
    result = check(proto, limit=4e-6)
    assert len(result.model.graph.node) <= len(proto.graph.node) - 1
    assert result.model.graph.node[-1].output[0] == "y"


def test_two_maps_of_one_x():
    """BN(x) + BN(x) + Conv(x): both become the same tap, rounded together."""
    text = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\nm = BN <maps = 4> (x)\nn = BN <maps = 4> (x)\n"
    text += "a = Add (m, c)\ny = Add (a, n)"
    check(graph(text, w=(4, 4, 3, 3)), folded=2, nodes="Conv", limit=4e-6)


def test_repvgg_block():
    """3x3 with its map, 1x1 with its map, identity with its map, ReLU: three fold; --merge-branches leaves one."""
    text = ("c = Conv <pads = [1, 1, 1, 1]> (x, w)\ncn = BN <maps = 4> (c)\nd = Conv (x, v)\ndn = BN <maps = 4> (d)\n"
            "n = BN <maps = 4> (x)\na = Add (cn, dn)\ns = Add (a, n)\ny = Relu (s)")  # fmt: skip
    proto = graph(text, w=(4, 4, 3, 3), v=(4, 4, 1, 1))
    check(proto, folded=3, nodes="Conv Conv Add Relu", limit=4e-6)
    result = check(proto, folded=4, nodes="Conv Relu", limit=4e-6, merge_branches=True)
    assert [site.kind for site in result.folded].count("branch") == 1


DILATED, STRIDED = "pads = [2, 2, 2, 2], dilations = [2, 2]", "pads = [1, 1, 1, 1], strides = [6, 6]"
MERGES = {
    "1x1_into_3x3": ("pads = [1, 1, 1, 1]", (4, 4, 3, 3), "", (4, 4, 1, 1), 1),
    "3x3_first": ("", (4, 4, 1, 1), "pads = [1, 1, 1, 1]", (4, 4, 3, 3), 1),
    "same": ("pads = [1, 1, 1, 1]", (4, 4, 3, 3), "pads = [1, 1, 1, 1]", (4, 4, 3, 3), 1),
    "3x1_and_1x3": ("pads = [1, 0, 1, 0]", (4, 4, 3, 1), "pads = [0, 1, 0, 1]", (4, 4, 1, 3), 0),
    "stride": ("pads = [1, 1, 1, 1], strides = [2, 2]", (4, 4, 3, 3), "strides = [2, 2]", (4, 4, 1, 1), 1),
    "groups": ("pads = [1, 1, 1, 1], group = 2", (4, 2, 3, 3), "group = 2", (4, 2, 1, 1), 1),
    "groups_differ": ("pads = [1, 1, 1, 1], group = 2", (4, 2, 3, 3), "", (4, 4, 1, 1), 0),
    "dilated": ("pads = [2, 2, 2, 2], dilations = [2, 2]", (4, 4, 3, 3), "", (4, 4, 1, 1), 1),
    "dilations_differ": ("pads = [2, 2, 2, 2]", (4, 4, 5, 5), DILATED, (4, 4, 3, 3), 0),
    "asymmetric": ("pads = [2, 0, 0, 2]", (4, 4, 3, 3), "", (4, 4, 1, 1), 1),
    "valid": ('auto_pad = "VALID"', (4, 4, 1, 1), "pads = [1, 1, 1, 1]", (4, 4, 3, 3), 1),
    "small_pads_more": ("pads = [0, 0, 0, 0]", (4, 4, 5, 5), STRIDED, (4, 4, 3, 3), 0),
    "one_map_broadcasts": ("pads = [1, 1, 1, 1]", (4, 4, 3, 3), "", (1, 4, 1, 1), 0),
    "one_position_broadcasts": ("", (4, 4, 6, 6), "", (4, 4, 1, 1), 0),
}  # fmt: skip


@pytest.mark.parametrize("biases", [("", ""), (", b", ""), ("", ", d"), (", b", ", d")], ids=["00", "10", "01", "11"])
@pytest.mark.parametrize("case", MERGES)
def test_merge_branches(case, biases):
    """Both read x, the smaller kernel fits into the larger one at its place: one Conv; without the flag nothing."""
    first, w, second, v, merges = MERGES[case]
    text = f"c = Conv <{first}> (x, w{biases[0]})\ne = Conv <{second}> (x, v{biases[1]})\ny = Add (c, e)"
    held = {"b": (w[0],), "d": (v[0],)}
    tensors = {name: value for name, value in held.items() if f", {name}" in "".join(biases)}
    proto = graph(text, w=w, v=v, **tensors)
    check(proto, folded=merges, merge_branches=True, limit=4e-6)
    check(proto, folded=0)


def test_merge_chains_of_adds_and_shared_branches():
    """Three Conv become one; a branch or a sum that is public stays."""
    text = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\nd = Conv (x, v)\ne = Conv (x, u)\na = Add (c, d)\ny = Add (a, e)"
    tensors = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), "u": (4, 4, 1, 1)}
    check(graph(text, **tensors), folded=2, nodes="Conv", limit=4e-6, merge_branches=True)
    check(graph(text, **tensors, outputs=("y", "d")), folded=0, merge_branches=True)
    check(
        graph(text, **tensors, outputs=("y", "a")), folded=1, nodes="Conv Conv Add", limit=4e-6, merge_branches=True
    )
