"""Shapes as the graph tells them: products of sizes, computed targets, and what must not be taken for known."""

import onnx
import pytest

import bnfold
from bnfold.graph import GraphFacts
from bnfold.shapes import ONE, Dim, product, sizes


def shape_of(text: str, value: str, opset: int = 17) -> list[int | str] | None:
    """The shape of `value`: numbers, and `?` for sizes that are not known."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    found = GraphFacts(model).shapes.of(value)
    return None if found is None else [dim.factor if dim.size is not None else "?" for dim in found]


def test_dimensions_multiply_and_divide():
    """Products are equal whatever the order, and a quotient exists only where it is a product again."""
    batch, width = Dim(1, ("n",)), Dim(1, ("w",))
    assert batch * width * Dim(3) == Dim(3) * width * batch
    assert (batch * width * Dim(6)).over(width * Dim(2)) == Dim(3) * batch
    assert (batch * Dim(6)).over(width) is None
    assert Dim(7).over(Dim(2)) is None
    assert Dim(7).over(Dim(0)) is None
    assert product([]) == ONE
    assert sizes((Dim(2), batch)) is None
    assert sizes((Dim(2), Dim(3))) == (2, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(float[N,4,6,6] x) => (float[M,K] y) <int64[2] s = {0,-1}> { y = Reshape(x, s) }", ["?", 144]),
        ("(float[N,4,6,6] x) => (float[M,K] y) { y = Flatten <axis = 1> (x) }", ["?", 144]),
        ("(float[2,4,H,W] x) => (float[M,K] y) <int64[3] s = {2,4,-1}> { y = Reshape(x, s) }", [2, 4, "?"]),
        ("(float[N,8] x) => (float[M,K] y) <int64[1] a = {1}> { y = Unsqueeze(x, a) }", ["?", 1, 8]),
        ("(float[N,1,8] x) => (float[M,K] y) <int64[1] a = {-2}> { y = Squeeze(x, a) }", ["?", 8]),
        ("(float[N,5,8] x) => (float[M,K] y) { y = Transpose(x) }", [8, 5, "?"]),
        ("(float[N,7] x) => (float[M,K] y) <int64[1] a = {1}, int64[1] e = {-1}> {y = Slice(x, a, e, a)}", ["?", 5]),
    ],
)  # fmt: skip
def test_shapes_follow(text, expected):
    """What the operators do to sizes, known and not."""
    assert shape_of(text, "y") == expected


def test_a_computed_target_is_followed():
    """Shape, Gather, Mul and Concat make the target of a Reshape that merges batch and tokens."""
    text = """(float[N,6,8] x) => (float[M,K] y)
        <int64 zero = {0}, int64[1] six = {6}, int64[1] k = {8}, int64[1] a = {0}> {
        s = Shape(x) n = Gather <axis = 0> (s, zero) u = Unsqueeze(n, a) m = Mul(u, six)
        t = Concat <axis = 0> (m, k) y = Reshape(x, t) z = Reshape(y, s) }"""
    assert shape_of(text, "y") == ["?", 8]
    assert shape_of(text, "z") == ["?", 6, 8]


def test_a_table_of_sizes_is_not_read_as_a_list():
    """A Slice of a tensor of rank 2 takes rows; its entries are not followed."""
    text = """(float[N,4,4,3] x) => (float[A,B] y)
        <int64[2] s22 = {2,2}, int64[1] a = {0}, int64[1] b = {1}, int64[1] flat = {-1}, int64[2] rest = {4,-1}> {
        sh = Shape(x) r2 = Reshape(sh, s22) sl = Slice(r2, a, b, a) fl = Reshape(sl, flat)
        t = Concat <axis = 0> (fl, rest) y = Reshape(x, t) }"""
    assert shape_of(text, "y") in (None, ["?", "?", "?", "?"])


@pytest.mark.parametrize("kind", [9, 3])
def test_sizes_that_are_cast_to_small_types_are_not_followed(kind):
    """Truth values and int8 are other numbers."""
    text = f"""(float[N,300] x) => (float[A,B] y) {{
        s = Shape(x) c = Cast <to = {kind}> (s) d = Cast <to = 7> (c) y = Reshape(x, d) }}"""
    assert shape_of(text, "y") in (None, ["?", "?"])


@pytest.mark.parametrize(
    "text",
    [
        "(float x, float[2] v) => (float[2] y) <int64[1] i = {2}> {s = Shape(x) m = Mul(s, i) y = Neg(v)}",
        "(float[2,3] v) => (float[A] y) <int64[2] a = {1,1}, float k = {2}> { u = Unsqueeze(v, a) y = Mul(u, k) }",
        "(float[2] v) => (float[2] y) <float k = {2}> {s = Shape(v) m = Mul(s) y = Mul(v, k)}",
    ],
)
def test_odd_sizes_stop_nothing(text):
    """Empty lists of sizes and axes named twice leave a shape unknown, and no more."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    bnfold.fold(model, verify=False, sources="all")


def test_an_input_that_callers_may_replace_tells_no_shape():
    """A Reshape target that is a model input too is not taken for what it holds, frozen or not."""
    text = """(float[N,4,6] x, int64[2] s) => (float[A,B] y) <int64[2] s = {0,-1}> { y = Reshape(x, s) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    assert GraphFacts(model, freeze_inputs=True).shapes.of("y")[1].size is None
