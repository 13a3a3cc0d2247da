"""Weights with several readers, in external files and lifted out of the bytes of large ones: contents after writing.

One tensor is changed in place, another is a copy made from the same numbers: neither may be computed from what the
other has become, whichever is written first, and however often.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import bnfold
from bnfold import document, sweep, wire
from tests.conftest import ops, random_feeds, run, tensor
from tests.folding import assert_same_values, graph
from tests.test_external import external_names, externalise

BN_C, BN_D = "y = BN <maps = 5> (c)\n", "z = BN <maps = 5> (d)\n"
C, D = "[c] c = Conv (x, w, b)\n", "[d] d = Conv (x, w, b)\n"
# name: nodes, outputs, operators left
SHARED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "two_readers": (C + BN_C + D + BN_D, ("y", "z"), "Conv Conv"),
    "one_reader_stays": (C + BN_C + D + "z = Relu (d)", ("y", "z"), "Conv Conv Relu"),
    "clone": (C + BN_C + "z = Relu (c)", ("y", "z"), "Conv Conv Relu"),
    "clone_of_both": (C + BN_C + "z = BN <maps = 5> (c)", ("y", "z"), "Conv Conv"),
    "clone_and_another": (
        C + BN_C + "r = Relu (c)\n" + D + BN_D, ("y", "z", "r"), "Conv Conv Relu Conv"),
    "three_maps_and_another": (
        C + BN_C + "r = BN <maps = 5> (c)\ns = BN <maps = 5> (c)\n" + D + BN_D, ("y", "z", "r", "s"),
        "Conv Conv Conv Conv"),
    "one_map_twice": (
        C + "m = BN <maps = 5> (c)\ny = Mul (m, k)\n" + D + BN_D + "r = Relu (c)", ("y", "z", "r"),
        "Conv Conv Conv Relu"),
    # folded in place first, and then copied from what it was
    "clone_of_what_was_folded": (
        C + "m = BN <maps = 5> (c)\ny = BN <maps = 5> (m)\nz = Relu (m)", ("y", "z"), "Conv Conv Relu"),
    "two_clones_of_what_was_folded": (
        C + "m = BN <maps = 5> (c)\ny = BN <maps = 5> (m)\nz = Relu (m)\nr = Mul (m, k)", ("y", "z", "r"),
        "Conv Conv Conv Relu"),
    "clone_of_one_of_two": (
        C + "m = BN <maps = 5> (c)\ny = BN <maps = 5> (m)\nr = Relu (m)\n" + D + BN_D, ("y", "z", "r"),
        "Conv Conv Conv Relu"),
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "one_file": {},
    "many_files": {"file": "{}.bin"},
    "weight_alone": {"names": ("w",)},
    "bias_alone": {"names": ("b",)},
    "odd_offsets": {"align": 7},
}


def network(case: str, weight: tuple[int, ...] = (5, 4, 3, 3)) -> ModelProto:
    """The lines of a case, with random numbers."""
    text, outputs, _ = SHARED[case]
    more = {"k": (5, 1, 1)} if ", k)" in text else {}
    return graph(text, (2, 4, 6, 6), outputs=outputs, w=weight, b=(5,), **more)


def numbers(proto: ModelProto) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of every initializer."""
    return {t.name: (tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in proto.graph.initializer}


def assert_written(path: Path, given: ModelProto, expected: ModelProto) -> None:
    """The file loads in onnx and onnxruntime, holds the numbers of `expected`, and gives what `given` gives."""
    onnx.checker.check_model(path, full_check=True)
    found = onnx.load(path)
    assert numbers(found) == numbers(expected)
    assert [n.SerializeToString() for n in found.graph.node] == [n.SerializeToString() for n in expected.graph.node]
    feeds = random_feeds(given)
    for first, second in zip(run(given, feeds), run(path, feeds), strict=True):
        assert np.abs(first - second).max() <= 4e-6 * np.abs(first).max()
    assert_same_values(given, found, 4e-6)


def assert_right_wherever_it_is_saved(source: Path, given: ModelProto, expected: ModelProto, **options: Any) -> None:
    """Written at once, saved twice from one result, and in place at last: each file holds what it must."""
    folder = source.parent
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    result = bnfold.fold(source, **options)
    assert result.verification
    inline = ModelProto()
    inline.CopyFrom(result.model)
    onnx.load_external_data_for_model(inline, str(folder))
    assert numbers(inline) == numbers(expected)
    bnfold.fold(source, folder / "out.onnx", **options)
    result.save(folder / "saved.onnx")
    result.save(elsewhere / "again.onnx")
    for path in (folder / "out.onnx", folder / "saved.onnx", elsewhere / "again.onnx"):
        assert_written(path, given, expected)
    assert not bnfold.fold(elsewhere / "again.onnx", **options).folded
    bnfold.fold(source, in_place=True, **options)
    assert_written(source, given, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHARED)
def test_an_external_weight_that_several_read(case: str, layout: str, tmp_path: Path) -> None:
    """The numbers are those of the fold of the model that holds them itself; what was inline stays inline."""
    given = network(case)
    source = externalise(given, tmp_path / "model.onnx", **LAYOUTS[layout])
    was_external = external_names(source)
    expected = bnfold.fold(given, verify=False, clone_shared=True).model
    assert sorted(ops(expected)) == sorted(SHARED[case][2].split())
    assert_right_wherever_it_is_saved(source, given, expected, clone_shared=True)
    for name in external_names(tmp_path / "out.onnx"):
        assert name.split("_")[0] in was_external


@pytest.mark.parametrize("case", SHARED)
def test_copies_of_an_external_weight_are_external(case: str, tmp_path: Path) -> None:
    """However the copy came about: a model whose weights do not fit into a protobuf would not fit with it inline."""
    source = externalise(network(case), tmp_path / "model.onnx", ("w",))
    bnfold.fold(source, tmp_path / "out.onnx", clone_shared=True)
    held = {t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert external_names(tmp_path / "out.onnx") == {
        name for name in held if name == "w" or name.startswith("w_fold")
    }


@pytest.mark.parametrize("size", ["large_file", "small_file", "small_tensors"])
@pytest.mark.parametrize("case", SHARED)
def test_a_lifted_weight_that_several_read(
    case: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the numbers stay in the bytes of a file; are parsed, but put in when it is written; are small."""
    given = network(case)
    onnx.save(given, tmp_path / "model.onnx")
    expected = bnfold.fold(given, verify=False, clone_shared=True).model
    if size != "small_tensors":
        monkeypatch.setattr(wire, "SMALLEST", 16)
        monkeypatch.setattr(sweep, "SMALLEST", 16)
    if size == "large_file":
        monkeypatch.setattr(document, "LIFT_FROM", 0)
    assert (document.Document.open(tmp_path / "model.onnx").lifted.keys() >= {"w", "b"}) == (size == "large_file")
    assert_right_wherever_it_is_saved(tmp_path / "model.onnx", given, expected, clone_shared=True)


@pytest.mark.parametrize("where", ["lifted", "external", "both"])
@pytest.mark.parametrize("case", ["two_readers", "clone_and_another", "clone_of_one_of_two"])
def test_real_sizes(case: str, where: str, tmp_path: Path) -> None:
    """A weight of 64 KiB and a file of 16 MiB, with the limits as they are; or its weight, or all of it, outside."""
    given = graph(SHARED[case][0], (1, 57, 18, 18), outputs=SHARED[case][1], w=(5, 57, 8, 8), b=(5,))
    assert len(given.graph.initializer[0].raw_data) >= wire.SMALLEST
    ballast = tensor("ballast", np.zeros(2**22 + 1, np.float32))
    given.graph.initializer.append(ballast)
    expected = bnfold.fold(given, verify=False, clone_shared=True).model
    path = tmp_path / "model.onnx"
    if where == "lifted":
        onnx.save(given, path)
    else:
        externalise(given, path, ("w",) if where == "both" else ("w", "ballast"))
    lifted = document.Document.open(path).lifted.keys()
    assert lifted == {"lifted": {"w", "ballast"}, "both": {"ballast"}, "external": set()}[where]
    assert_right_wherever_it_is_saved(path, given, expected, clone_shared=True)


C_SHAPES = {"scalar": (), "one": (1,), "row": (1, 5), "vector": (5,), "one_by_one": (1, 1)}
GEMMS: dict[str, str] = {
    "pull": "h = Gemm <alpha = 0.5, beta = 2.0> (x, w, k)\ny = BN <maps = 5> (h)",
    "push": "n = BN <maps = 4> (x)\ny = Gemm <beta = 0.5> (n, w, k)",
    "two_that_fold": (
        "h = Gemm (x, w, k)\ny = BN <maps = 5> (h)\ng = Gemm <beta = 3.0> (x, w, k)\nz = BN <maps = 5> (g)"),
    "one_that_stays": "h = Gemm (x, w, k)\ny = BN <maps = 5> (h)\ng = Gemm (x, w, k)\nz = Relu (g)",
    "clone": "h = Gemm (x, w, k)\ny = BN <maps = 5> (h)\nz = Relu (h)",
    "clone_of_both": "h = Gemm (x, w, k)\ny = BN <maps = 5> (h)\nz = BN <maps = 5> (h)",
    "two_maps": "h = Gemm (x, w, k)\nm = BN <maps = 5> (h)\ny = BN <maps = 5> (m)",
}  # fmt: skip


@pytest.mark.parametrize("place", ["one_file", "c_alone", "lifted"])
@pytest.mark.parametrize("shape", C_SHAPES)
@pytest.mark.parametrize("case", GEMMS)
def test_c_of_a_gemm_that_grows_outside(
    case: str, shape: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number becomes one for each column: dimensions, length and place are those of the new numbers."""
    text = GEMMS[case]
    given = graph(text, (3, 4), outputs=("y", "z") if "z = " in text else ("y",), w=(4, 5), k=C_SHAPES[shape])
    expected = bnfold.fold(given, verify=False, clone_shared=True).model
    assert "BatchNormalization" not in ops(expected)
    grown = [t for t in expected.graph.initializer if t.name.startswith("k_folded")]
    assert {tuple(t.dims) for t in grown} == {(1, 5) if shape in ("row", "one_by_one") else (5,)}
    path = tmp_path / "model.onnx"
    if place == "lifted":
        for module, name, limit in ((wire, "SMALLEST", 4), (sweep, "SMALLEST", 4), (document, "LIFT_FROM", 0)):
            monkeypatch.setattr(module, name, limit)
        onnx.save(given, path)
    else:
        externalise(given, path, ("k",) if place == "c_alone" else None)
    assert_right_wherever_it_is_saved(path, given, expected, clone_shared=True)
    if place != "lifted":
        assert {t.name for t in grown} <= external_names(tmp_path / "out.onnx")


def test_an_external_c_has_the_length_of_its_new_shape(tmp_path: Path) -> None:
    """By the file's own fields: 5 float32 are 20 bytes, on a page of their own, with nothing left of the old."""
    given = graph("h = Gemm (x, w, k)\ny = BN <maps = 5> (h)", (3, 4), w=(4, 5), k=np.array(2.5))
    source = externalise(given, tmp_path / "model.onnx")
    bnfold.fold(source, tmp_path / "out.onnx")
    (held,) = (
        t for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
        if t.name == "k_folded"
    )  # fmt: skip
    fields = {entry.key: entry.value for entry in held.external_data}
    assert (list(held.dims), held.data_location, fields["length"]) == ([5], TensorProto.EXTERNAL, "20")
    assert (int(fields["offset"]) % 4096, fields["location"], held.raw_data) == (0, "out.onnx.data", b"")
    data = (tmp_path / "out.onnx.data").read_bytes()[int(fields["offset"]) :][:20]
    expected = bnfold.fold(given, verify=False).model
    assert data == numbers(expected)["k_folded"][1]
