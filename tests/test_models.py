"""Real models: those in models/, whose sites were counted by hand, and public ones made by others."""

import hashlib
import re

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.document import serialise
from tests.conftest import MODELS, SHARED_MODELS, ops, run

README = (MODELS / "README.md").read_text(encoding="utf-8")
COUNTED = re.findall(r"^\| `(\w+\.onnx)` \| (\d+) \| (\d+) \| (.+?) \|$", README, re.MULTILINE)
DIGITS = ["digits_resnet", "digits_mobilenet", "digits_resnet_dynamo", "digits_mobilenet_dynamo"]

needs_shared = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="the public models are not in this checkout")


def codes(sites):
    """How many sites have each code."""
    found = {}
    for site in sites:
        found[site.code] = found.get(site.code, 0) + 1
    return found


def test_every_model_was_counted_and_has_its_hash():
    """The README's hand-counted table and its hashes cover exactly the files that are there."""
    files = sorted(path.name for path in MODELS.glob("*.onnx"))
    assert sorted(name for name, *_ in COUNTED) == files
    hashes = dict(re.findall(r"^\| `([\w.]+)` \|.*`([0-9a-f]{64})` \|$", README, re.MULTILINE))
    assert sorted(hashes) == sorted([*files, "digits_test.npz"])
    for name, expected in hashes.items():
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == expected, name


def test_models_are_small():
    """Each under 1 MB, together under 6 MB."""
    sizes = [path.stat().st_size for path in MODELS.iterdir()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 6_000_000


@pytest.mark.parametrize(("name", "total", "fold", "left"), COUNTED, ids=[row[0] for row in COUNTED])
def test_counted_sites_fold_and_outputs_stay(name, total, fold, left, tmp_path):
    """What was counted by hand folds, the rest has its code, and both models give the same outputs."""
    expected = {} if left == "-" else {c: int(n) for c, n in (item.rsplit(" ", 1) for item in left.split(", "))}
    target = tmp_path / name
    result = bnfold.fold(MODELS / name, target)
    assert len(result.report.sites) == int(total)
    assert len(result.folded) == int(fold)
    assert codes(result.refused) == expected
    assert all(site.message for site in result.refused)
    assert ops(onnx.load(target)).count("BatchNormalization") == int(total) - int(fold)
    assert result.verification
    assert result.verification.worst.relative < 1e-5
    assert bnfold.inspect(MODELS / name).sites == result.report.sites


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
    """Twelve stay, and each reason names the node that cannot take the map in."""
    sites = bnfold.inspect(MODELS / "densenet.onnx").sites
    left = [site for site in sites if site.outcome == "left"]
    assert len(left) == 12
    for site in left:
        assert site.code == "producer-cannot-absorb"
        assert site.producer.split("'")[1] in site.message


SHARED = {
    "burn_opset_01": (0, {"training-mode": 1}),
    "burn_opset_06": (0, {"training-mode": 1}),
    "burn_opset_07": (0, {"training-mode": 1}),
    "burn_opset_15": (0, {"no-producer": 1}),
    "face_rfb_320": (0, {"overridable-initializer": 35}),
    "ort_fuse-conv-add-no-bias": (0, {}),
    "ort_fuse-conv-bn-add-mul-float16": (1, {}),
    "ort_fuse-conv-bn-mul-add-unsqueeze-no-bias": (1, {}),
    "ort_fuse-conv-bn-no-bias": (1, {}),
    "ort_fuse-conv-mul-no-bias": (0, {}),
    "ort_fuse-matmul-bn-directly": (0, {"producer-cannot-absorb": 1}),
    "ort_fuse-matmul-bn-directly-dont-fuse": (0, {"producer-cannot-absorb": 1}),
    "ort_fuse-matmul-bn-non-ignorable-node": (0, {"producer-cannot-absorb": 1}),
    "ort_fuse-matmul-bn-only-transpose": (0, {"producer-cannot-absorb": 1}),
    "ort_fuse-matmul-bn-with-reshape": (0, {"producer-cannot-absorb": 1}),
    "ort_negative-fuse-conv-add-no-bias": (0, {}),
}


@needs_shared
def test_every_public_model_has_an_expectation():
    """A model that is added there is noticed here."""
    assert sorted(path.stem for path in SHARED_MODELS.glob("*.onnx")) == sorted(SHARED)


@needs_shared
@pytest.mark.parametrize("name", SHARED)
def test_public_models(name, tmp_path):
    """Each opens, folds what stands behind a Conv, is verified, and is copied byte for byte where nothing folds.

    MatMul and bare Mul and Add chains are not absorbers and sources yet; the legacy ones are in training form.
    """
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
    """All 35 fold once its initializers are frozen; just those that took part leave the inputs."""
    source = SHARED_MODELS / "face_rfb_320.onnx"
    result = bnfold.fold(source, tmp_path / "folded.onnx", freeze_inputs=True)
    assert len(result.folded) == 35
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
