"""Maps before what can take them in: all that reads them must accept, else nothing moves; and --partial."""

import numpy as np
import onnx.parser
import pytest

from tests.conftest import initializer, ops
from tests.folding import check, fold, graph

BN = "[bn] n = BN <maps = 4> (x)\n"
CONV, PADDED = "[conv] y = Conv (n, w, b)", "[pad] {} = Conv <pads = [1, 1, 1, 1]> (n, v)"
W = {"w": (5, 4, 1, 1), "b": (5,)}
TURNED = "r = Transpose <perm = [0, 2, 1]> (p)\ny = BN <maps = 2> (r)"


def test_names_and_annotations():
    """The Conv keeps name and output, and reads x; n is gone; no Conv is more."""
    result = check(graph(BN + CONV, **W), nodes="Conv", limit=4e-6)
    node = result.model.graph.node[0]
    assert (node.name, node.input[0], node.output[0]) == ("conv", "x", "y")
    assert not result.renamed


# each reads n, and makes y0, y1, ...: what it may be, and whether the map can go into it
READERS = {
    "conv": ("Conv (n, w, b)", True),
    "strided": ("Conv <strides = [2, 2]> (n, u)", True),
    "grouped": ("Conv <group = 2> (n, g)", True),
    "transposed": ("ConvTranspose (n, t)", True),
    "padded": ("Conv <pads = [1, 1, 1, 1]> (n, v)", False),
    "relu": ("Relu (n)", False),
    "residual": ("Add (n, x)", False),
    "itself": ("Mul (n, n)", False),
    "stretched": ("ConvTranspose <strides = [2, 2]> (n, t)", False),
    "pooled": ("GlobalMaxPool (n)", False),
}
HELD = {"w": (5, 4, 1, 1), "b": (5,), "u": (3, 4, 2, 2), "g": (6, 2, 1, 1), "t": (4, 3, 1, 1), "v": (5, 4, 3, 3)}


@pytest.mark.parametrize("second", READERS)
@pytest.mark.parametrize("first", READERS)
def test_all_readers_must_accept(first, second):
    """Two readers: the map goes into both or into neither, and the reason names the one that refuses."""
    text = BN + "".join(f"[r{i}] y{i} = {READERS[name][0]}\n" for i, name in enumerate((first, second)))
    held = {name: shape for name, shape in HELD.items() if f", {name}" in text}
    proto = graph(text, **held, outputs=("y0", "y1"))
    accepts = [READERS[name][1] for name in (first, second)]
    result = check(
        proto, folded=int(all(accepts)), left=[fold(proto).refused[0].code] if not all(accepts) else [], limit=5e-6
    )
    if all(accepts):
        assert result.folded[0].into == ", ".join(
            f"{READERS[n][0].split()[0]} 'r{i}'" for i, n in enumerate((first, second))
        )
    else:
        assert any(f"'r{i}'" in result.refused[0].message for i in (0, 1) if not accepts[i])


@pytest.mark.parametrize(
    "op",
    [
        "Identity",
        "Transpose <perm = [0, 1, 3, 2]>",
        "MaxPool <kernel_shape = [2, 2]>",
        "AveragePool <kernel_shape = [2, 2]>",
    ],
)
def test_a_fork_below_a_carrier(op):
    """The map is carried to both ends; where one end refuses, nothing moves."""
    op_text = BN.replace("BN <maps = 4> (x)", "Mul (x, s)").replace("[bn]", "[m]") + f"h = {op} (n)\n"
    proto = graph(op_text + "y = Conv (h, w, b)\nz = Conv (h, w)", **W, s=np.full((4, 1, 1), 2.5), outputs=("y", "z"))
    result = check(proto, limit=4e-6)
    assert ops(result.model) == [op.split()[0], "Conv", "Conv"]
    left = graph(op_text + "y = Conv (h, w, b)\n[e] z = Exp (h)", **W, s=np.full((4, 1, 1), 0.5), outputs=("y", "z"))
    message = check(left, folded=0, left=["activation-between"]).refused[0].message
    assert "Exp 'e'" in message.split("; upstream: ")[0]


@pytest.mark.parametrize(
    ("text", "outputs", "word"),
    [
        (BN + CONV, ("y", "n"), "'n' is an output"),
        (BN + "h = Identity (n)\ny = Conv (h, w, b)", ("y", "h"), "'h' is an output"),
        (BN + "h = Identity (n)\nk = Identity (h)\ny = Conv (k, w, b)", ("y", "h"), "'h' is an output"),
    ],
)
def test_public_values_stay(text, outputs, word):
    """What is an output keeps its numbers."""
    proto = graph(text, **W, outputs=outputs)
    assert word in check(proto, folded=0, left=["no-producer"]).refused[0].message


def test_a_dead_map():
    """Nothing reads it: it is neither folded nor removed, since nobody asked for that."""
    proto = graph(BN + "y = Conv (x, w, b)", **W)
    assert "nothing reads 'n'" in check(proto, folded=0, left=["consumer-cannot-absorb"]).refused[0].message


def test_a_carrier_with_an_unread_output():
    """Split gives a piece that nobody reads, and one that a Conv reads."""
    text = BN + "p, q = Split <axis = 1> (n, half)\ny = Conv (p, w)"
    result = check(graph(text, w=(5, 2, 1, 1), half=np.array([2, 2])), limit=4e-6)
    assert ops(result.model) == ["Split", "Conv"]


@pytest.mark.parametrize("inside", ["n", "h"])
def test_what_an_if_captures_stays(inside):
    """A branch reads the map's output, or what was carried from it: nothing moves."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,4,6,6] x, bool[1] cond) => (float[2,4,6,6] y, float[2,4,6,6] z)
    <float[1,1,1,1] w = {{2}}, float[4] g = {{1,2,3,4}}, float[4] b = {{1,2,3,4}}, float[4] m = {{1,2,3,4}},
     float[4] v = {{1,1,1,1}}, float[4,1,1,1] k = {{1,2,3,4}}> {{
      [bn] n = BatchNormalization (x, g, b, m, v)
      h = Identity (n)
      y = Conv <group = 4> (h, k)
      [if] z = If (cond) <then_branch = t () => (float[2,4,6,6] a) {{ a = Identity ({inside}) }},
                         else_branch = e () => (float[2,4,6,6] c) {{ c = Relu (x) }}>
    }}"""
    proto = onnx.parser.parse_model(text)
    message = check(proto, folded=0, left=["no-producer"]).refused[0].message
    assert "'x' is a model input" in message
    assert "'a' is an output of then_branch of If 'if'" in message


def test_pull_wins():
    """Conv, map, Conv: it goes upstream; two in a row between both go upstream too."""
    text = "[a] c = Conv (x, v)\nn = BN <maps = 4> (c)\ny = Conv (n, w, b)"
    result = check(graph(text, **W, v=(4, 4, 1, 1)), nodes="Conv Conv", limit=4e-6)
    assert (result.folded[0].direction, result.folded[0].into) == ("pull", "Conv 'a'")
    assert initializer(result.model, "w").any()


def test_two_maps_in_a_row_before_a_conv():
    """Both are pushed, the last one first."""
    text = "m = BN <maps = 4> (x)\nn = BN <maps = 4> (m)\ny = Conv (n, w, b)"
    check(graph(text, **W), folded=2, nodes="Conv", limit=4e-6)


def test_two_matmuls_behind_one_map():
    """The shift adds a node behind each, so that there are more nodes, but on no path."""
    text = "[bn] n = BN <maps = 4> (x)\nt = Transpose <perm = [0, 2, 1]> (n)\ny = MatMul (t, m)\nz = MatMul (t, k)"
    proto = graph(text, (2, 4, 6), m=(4, 3), k=(4, 3), outputs=("y", "z"))
    check(proto, nodes="Transpose MatMul Add MatMul Add", limit=4e-6)


@pytest.mark.parametrize("attributes", ["pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"', "pads = [0, 0, 0, 1]"])
def test_partial_leaves_one_add(attributes):
    """The scale goes into the weights, t / s stays as an Add under the name that it maps to nowhere else."""
    proto = graph(BN + f"[pad] y = Conv <{attributes}> (n, v)", v=(5, 4, 3, 3))
    check(proto, folded=0, left=["shift-meets-padding"])
    result = check(proto, nodes="Add Conv", limit=5e-6, partial=True)
    assert result.folded[0].direction == "partial"
    assert len(result.model.graph.node) == len(proto.graph.node)
    assert "shift" in str(result.folded[0].notes)


def test_partial_with_a_dead_map():
    """Scale 0 with a shift cannot be divided; scale 0 without one can."""
    parameters = {"g": np.array([0.0, 1, 2, 3]), "be": np.array([1.0, 1, 1, 1]), "m": np.zeros(4), "v": np.ones(4)}
    text = "n = BatchNormalization (x, g, be, m, v)\ny = Conv <pads = [1, 1, 1, 1]> (n, w)"
    check(graph(text, w=(5, 4, 3, 3), **parameters), folded=0, left=["shift-meets-padding"], partial=True)
    parameters["be"][0] = 0
    check(graph(text, w=(5, 4, 3, 3), **parameters), nodes="Add Conv", limit=5e-6, partial=True)


@pytest.mark.parametrize("text", ["[m] n = Add (x, k)\n{}", "n = Mul (x, one)\n[m] h = Add (n, k)\n{}"])
def test_partial_of_what_is_a_shift_already(text):
    """Nothing would be won: it stays, and stays the second time."""
    body = text.format(PADDED.format("y").replace("(n", "(h" if "h =" in text else "(n"))
    proto = graph(body, v=(5, 4, 3, 3), k=(4, 1, 1), **({"one": np.array(1.0)} if "one" in text else {}))
    result = fold(proto, partial=True)
    assert ops(result.model).count("Add") == 1
    assert len(result.model.graph.node) <= len(proto.graph.node)


def test_partial_with_several_readers():
    """One is padded, one is not: both get the scale, and both read the Add; one that refuses keeps all as it was."""
    text = BN + "y = Conv (n, w, b)\n" + PADDED.format("z")
    proto = graph(text, **W, v=(5, 4, 3, 3), outputs=("y", "z"))
    check(proto, nodes="Add Conv Conv", limit=5e-6, partial=True)
    other = graph(text + "\n[r] u = Relu (n)", **W, v=(5, 4, 3, 3), outputs=("y", "z", "u"))
    check(other, folded=0, left=[fold(other).refused[0].code], partial=True)


@pytest.mark.parametrize("x", [(2, 4, 6, 6), ("n", 4, "h", "w"), ("n", 4, 1, 1)], ids=str)
def test_free_sizes(x):
    """Batch, height and width may be free where no padding is read."""
    proto = graph(BN + CONV, x, **W)
    check(proto, nodes="Conv", limit=4e-6)


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("h = MatMul (x, m)\np, z = Split <axis = 2> (h, half)\na = Mul (p, k)\ny = Add (a, t)", (2, 3, 4)),
        ("h = MatMul (x, m)\np, z = Split <axis = 2> (h, half)\n" + TURNED, (2, 3, 4)),
        ("h = MatMul (m, x)\np, z = Split <axis = 1> (h, half)\ny = BN <maps = 2> (p)", (2, 4, 3)),
    ],
    ids=["chain", "transposed", "left"],
)  # fmt: skip
def test_a_new_bias_lengthens_no_path_beside(text, x):
    """One piece is mapped, the other is an output: the Add stays where the map was, on the path of one piece."""
    held = {"m": (4, 4), "half": np.array([2, 2]), "k": (2,), "t": (2,)}
    used = {name: value for name, value in held.items() if f", {name})" in text or f"({name}," in text}
    proto = graph(text, x, **used, outputs=("y", "z"))
    result = check(proto, limit=4e-6)
    assert ops(result.model)[:2] == ["MatMul", "Split"]
    assert (ops(result.model)[-1], result.model.graph.node[-1].output[0]) == ("Add", "y")


def test_a_conv_before_a_split_may_take_one_piece_in():
    """A Conv has a bias of its own: no path is longer, and the other piece stays bit by bit what it was."""
    text = "h = Conv (x, w)\np, z = Split <axis = 1> (h, half)\ny = BN <maps = 2> (p)"
    result = check(graph(text, w=(4, 4, 1, 1), half=np.array([2, 2]), outputs=("y", "z")), limit=4e-6)
    assert ops(result.model) == ["Conv", "Split"]
