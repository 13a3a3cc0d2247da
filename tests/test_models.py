"""Real models: those in models/, whose sites were counted by hand, and public ones made by others."""

import hashlib
import re
import tomllib

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.document import serialise
from bnfold.refusals import Code
from tests.conftest import MODELS, ROOT, SHARED_MODELS, ops, run

README = (MODELS / "README.md").read_text(encoding="utf-8")
EXPECTED = tomllib.loads((ROOT / "tools" / "expected_folds.toml").read_text(encoding="utf-8"))
# Of the outputs' scale. repvgg_a0 comes nearest, where inputs follow the running statistics: there its original is
# 1.7e-5 off its own float64 evaluation, and moves by 1.5e-5 if each input moves by one ulp.
LARGEST_NOISE = 3e-5
DIGITS = ["digits_resnet", "digits_mobilenet", "digits_resnet_dynamo", "digits_mobilenet_dynamo"]

needs_shared = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="the public models are not in this checkout")


def codes(sites):
    """How many sites have each code."""
    found = {}
    for site in sites:
        found[site.code] = found.get(site.code, 0) + 1
    return found


def test_every_model_was_counted_and_has_its_hash():
    """The hand-counted file and the README's hashes cover exactly the files that are there."""
    files = sorted(path.name for path in MODELS.glob("*.onnx"))
    assert sorted(f"{stem}.onnx" for stem in EXPECTED) == files
    hashes = dict(re.findall(r"^\| `([\w.]+)` \|.*`([0-9a-f]{64})` \|$", README, re.MULTILINE))
    assert sorted(hashes) == sorted([*files, "digits_test.npz"])
    for name, expected in hashes.items():
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == expected, name


def test_every_count_adds_up_and_says_why():
    """Sites = folds + all that stays, each with a known code and a sentence of how it was counted."""
    for stem, row in EXPECTED.items():
        assert set(row) == {"batchnorms", "chains", "folds", "why", "left"}, stem
        assert row["batchnorms"] + row["chains"] == row["folds"] + sum(row["left"].values()), stem
        assert set(row["left"]) <= {code.value for code in Code}, stem
        assert row["why"].endswith("."), stem


def test_the_readme_shows_what_was_counted():
    """The table in models/README.md is the hand-counted file."""
    rows = re.findall(r"^\| `?(\w+)(?:\.onnx)?`? \| (\d+) \| (\d+) \| (\d+) \| (.+?) \|", README, re.MULTILINE)
    shown = {name: ([int(n) for n in numbers], parse(left)) for name, *numbers, left in rows}
    assert len(shown) == len(rows)
    assert shown == {
        stem: ([row["batchnorms"], row["chains"], row["folds"]], row["left"]) for stem, row in EXPECTED.items()
    }


def parse(left):
    """`code 3, other-code 1`, or `-` for nothing."""
    return {} if left == "-" else {c: int(n) for c, n in (item.rsplit(" ", 1) for item in left.split(", "))}


def test_models_are_small():
    """Each under 1 MB, together under 6 MB."""
    sizes = [path.stat().st_size for path in MODELS.iterdir()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 6_000_000


@pytest.mark.parametrize("stem", EXPECTED)
def test_counted_sites_fold_and_outputs_stay(stem, tmp_path):
    """What was counted by hand folds, the rest has its code, and outputs differ by rounding and noise alone."""
    expected = EXPECTED[stem]
    source, target = MODELS / f"{stem}.onnx", tmp_path / "folded.onnx"
    result = bnfold.fold(source, target)
    sites = result.report.sites
    assert codes(result.refused) == expected["left"]
    assert len(result.folded) == expected["folds"]
    kinds = [site.kind for site in sites]
    assert kinds.count("BatchNormalization") == expected["batchnorms"]
    assert kinds.count("chain") == expected["chains"]
    assert len(sites) == expected["batchnorms"] + expected["chains"]
    assert all(site.message and not site.into for site in result.refused)
    assert all(site.into and not site.message for site in result.folded)
    gone = sum(site.kind == "BatchNormalization" for site in result.folded)
    assert ops(onnx.load(target)).count("BatchNormalization") == expected["batchnorms"] - gone
    assert bnfold.inspect(source).sites == sites
    if not expected["folds"]:
        assert target.read_bytes() == source.read_bytes()
        return
    assert result.verification
    assert all(output.relative <= min(output.limit, LARGEST_NOISE) for output in result.verification.outputs)


@pytest.mark.parametrize("name", DIGITS)
def test_digits_classify_as_before(name, tmp_path):
    """No BatchNormalization is left, and each of the 450 held-out digits gets the label it got before."""
    data = np.load(MODELS / "digits_test.npz")
    bnfold.fold(MODELS / f"{name}.onnx", tmp_path / "folded.onnx")
    assert "BatchNormalization" not in ops(onnx.load(tmp_path / "folded.onnx"))
    before, after = (
        run(path, {"pixel_values": data["pixel_values"]})[0]
        for path in (MODELS / f"{name}.onnx", tmp_path / "folded.onnx")
    )
    assert (before.argmax(1) == data["labels"]).mean() > 0.95
    assert (before.argmax(1) == after.argmax(1)).all()
    assert np.abs(before - after).max() <= 3e-6 * np.abs(before).max()


def test_folded_densenet_gives_a_reason_for_each_that_stays():
    """Twelve stay: each reason names the value that others read too, and who else reads it."""
    sites = bnfold.inspect(MODELS / "densenet.onnx").sites
    left = [site for site in sites if site.outcome == "left"]
    assert len(left) == 12
    for site in left:
        assert site.code == "producer-shared"
        assert re.search(r"'[^']+', made by [A-Z]\w+ '[^']+', is read \d+ times: ", site.message)
        assert "; downstream: " in site.message


# Folds and refusals, by hand from the graphs:
# - burn_opset_15: the BatchNormalization reads an input and makes an output.
# - fuse-conv-add, -mul: a bare chain by (64, 1, 1) behind a Conv. conv-bn-mul-add: the pair behind the
#   BatchNormalization is a chain of its own, and goes where that went. -float16: likewise, Add and Mul by
#   (1, 1, 2, 2) with the same number everywhere.
# - negative-fuse-conv-add: the Add's constant is an input with a default, at IR 4.
# - matmul-bn-directly, -non-ignorable-node: (1, 5) @ (5, 5), so that axis 1 is the columns; Identity carries. The
#   shift becomes the C of a Gemm. -with-reshape: (-1, 1, 1, 5), then Transpose to NCHW, take the columns to axis 1.
# - matmul-bn-directly-dont-fuse: (1, 1, 5) @ (5, 5): the columns are axis 2, the maps axis 1, which has one for
#   the five of the parameters. (onnxruntime does not run this one.)
# - matmul-bn-only-transpose: the Transpose makes the columns axis 0, so that axis 1 of the BatchNormalization is the
#   rows of the product.
SHARED = {
    "burn_opset_01": (0, {"training-mode": 1}),
    "burn_opset_06": (0, {"training-mode": 1}),
    "burn_opset_07": (0, {"training-mode": 1}),
    "burn_opset_15": (0, {"no-producer": 1}),
    "face_rfb_320": (0, {"overridable-initializer": 35}),
    "ort_fuse-conv-add-no-bias": (1, {}),
    "ort_fuse-conv-bn-add-mul-float16": (2, {}),
    "ort_fuse-conv-bn-mul-add-unsqueeze-no-bias": (2, {}),
    "ort_fuse-conv-bn-no-bias": (1, {}),
    "ort_fuse-conv-mul-no-bias": (1, {}),
    "ort_fuse-matmul-bn-directly": (1, {}),
    "ort_fuse-matmul-bn-directly-dont-fuse": (0, {"not-per-map": 1}),
    "ort_fuse-matmul-bn-non-ignorable-node": (1, {}),
    "ort_fuse-matmul-bn-only-transpose": (0, {"not-per-map": 1}),
    "ort_fuse-matmul-bn-with-reshape": (1, {}),
    "ort_negative-fuse-conv-add-no-bias": (0, {"overridable-initializer": 1}),
}


@needs_shared
def test_every_public_model_has_an_expectation():
    """A model that is added there is noticed here."""
    assert sorted(path.stem for path in SHARED_MODELS.glob("*.onnx")) == sorted(SHARED)


@needs_shared
@pytest.mark.parametrize("name", SHARED)
def test_public_models(name, tmp_path):
    """Each opens, folds what the algebra above says, is verified, and is copied byte for byte where nothing folds."""
    source, target = SHARED_MODELS / f"{name}.onnx", tmp_path / "folded.onnx"
    result = bnfold.fold(source, target)
    folded, left = SHARED[name]
    assert len(result.folded) == folded
    assert codes(result.refused) == left
    if folded:
        assert result.verification
    else:
        assert target.read_bytes() == source.read_bytes()


@needs_shared
def test_face_detector_folds_with_frozen_inputs(tmp_path):
    """All fold once its initializers are frozen; just those that took part leave the inputs."""
    # 35 BatchNormalizations, and the two Mul that decode the boxes' centres: 0.1 and the size of the anchor, which
    # depends on the output channel of the four heads alone. What follows adds the anchor's place, which does not.
    source = SHARED_MODELS / "face_rfb_320.onnx"
    result = bnfold.fold(source, tmp_path / "folded.onnx", freeze_inputs=True)
    assert [site.kind for site in result.folded] == ["BatchNormalization"] * 35 + ["chain"]
    assert len(result.folded[-1].into.split(", ")) == 4
    assert not result.refused
    assert result.verification
    before, after = onnx.load(source), result.model
    onnx.checker.check_model(after)
    inputs = {v.name for v in before.graph.input}
    assert inputs - {v.name for v in after.graph.input} == set(result.frozen)
    used = {name for site in before.graph.node if site.op_type == "BatchNormalization" for name in site.input[1:]}
    assert used <= set(result.frozen)
    assert "input" in {v.name for v in after.graph.input}
    assert serialise(after) == (tmp_path / "folded.onnx").read_bytes()
