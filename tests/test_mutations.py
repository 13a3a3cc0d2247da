"""Proof of the prover: every wrong fold is called different and its value named; every right one is called equal."""

import numpy as np
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold.verification import Verification
from tests.conftest import batchnorm_parameters, initializer, model, run, tensor
from tests.mutations.corpus import COUNTS, KINDS, Mutant, mutants, seeded
from tests.mutations.evaluate import moved, values
from tests.mutations.honest import PEERS, arithmetics, by_bnfold, by_peer, installed
from tests.mutations.networks import NAMES, network, right

LOCAL = 1.5  # honest bounds; what is further off is no rounding of the fold's own


def verdict(original: ModelProto, folded: ModelProto) -> Verification:
    """Judge two models in memory."""
    return bnfold.verify(original, folded, threads=1)


def fault_in(mutant: Mutant) -> str:
    """What is wrong with a mutant, or with the verdict on it where it counts; empty where nothing is."""
    strays = {value for value, off in mutant.moved.items() if off > LOCAL} - {mutant.value}
    if strays:
        return f"{mutant.name}: the mutant is no good, it moves {strays} besides {mutant.value}"
    if not mutant.counts:
        return ""
    found = verdict(mutant.original, mutant.folded)
    if found.verdict != "different":
        return f"{mutant.name}: {found.verdict}, although {mutant.off:.3g} bounds off"
    if mutant.value is None or "does not load" in found.reason:
        return ""
    named = None if found.blame is None else found.blame.value
    return "" if named == mutant.value else f"{mutant.name}: {named} is named instead of {mutant.value}"


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_folds_are_different_and_named(kind):
    """One place in each network: different, and where the fault sits in one value, that value is named."""
    found = seeded(kind)
    assert found
    assert [fault for mutant in found if (fault := fault_in(mutant))] == []


def test_most_mutants_count():
    """Four in five are further off than rounding, by an evaluation that shares no code with bnfold."""
    found = [mutant for kind in KINDS for mutant in seeded(kind, [name for name in NAMES if name != "deep"])]
    counting = [mutant for mutant in found if mutant.counts]
    assert len(KINDS) >= 30
    assert len(found) > 450
    assert len(counting) >= 0.8 * len(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluator_and_the_folder_are_right(name):
    """What judges the corpus agrees with onnxruntime on every output, and moves no value of a right fold."""
    net = network(name)
    found = values(net.model, net.feeds)
    limit = 3e-3 if name == "half" else 3e-4 if name == "deep" else 1e-5
    for value, array in zip(net.model.graph.output, run(net.model, net.feeds), strict=True):
        exact = found[value.name].value
        assert np.abs(array.astype(np.float64) - exact).max() <= limit * np.abs(exact).max()
    assert max(moved(net.model, right(name), net.feeds).values()) < 1


@pytest.mark.parametrize("name", NAMES)
def test_folds_in_any_honest_arithmetic_are_equal(name):
    """Folded in float64, in float32, or step by step in float16: equal, and less off than any mutant that counts."""
    net = network(name)
    for label, folded in arithmetics(net):
        assert max(moved(net.model, folded, net.feeds).values()) < COUNTS / 4, label
        found = verdict(net.model, folded)
        assert found.verdict == "equal", f"{label}: {found.reason}"


@pytest.mark.parametrize("name", NAMES)
def test_own_folds_are_equal_with_every_flag(name):
    """What bnfold folds is equal by its own judgement, whichever flags chose the folds."""
    for label, folded in by_bnfold(network(name).model):
        found = verdict(network(name).model, folded)
        assert found.verdict == "equal", f"{label}: {found.reason}"


@pytest.mark.parametrize("peer", PEERS)
def test_right_folds_of_other_tools_are_equal(peer):
    """Networks in float32 without inputs that are stored, which all of them fold rightly."""
    if not installed(peer):
        pytest.skip(f"{peer} is not installed")
    for name in ("resnet", "depthwise", "transposed", "decomposed"):
        found = verdict(network(name).model, by_peer(peer, network(name).model))
        assert found.verdict == "equal", f"{name}: {found.reason}"


def with_computed_bias(*constants) -> ModelProto:
    """x -> Conv -> Mul by s -> Add of the constant beta - mean s, which nodes in front compute -> y."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    nodes = [
        helper.make_node("Mul", ["mean", "s"], ["ms"]),
        helper.make_node("Sub", ["beta", "ms"], ["t"]),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["cs"]),
        helper.make_node("Add", ["cs", "t"], ["y"]),
    ]
    return model(nodes, [tensor("w", weight), *constants])


def test_a_constant_that_cancels_may_be_computed_more_exactly():
    """beta - mean s is left of two nearly equal numbers: an exact fold differs from the rounding of the graph."""
    rng = np.random.default_rng(1)
    s, mean = rng.uniform(0.5, 2, (4, 1, 1)).astype(np.float32), rng.normal(size=(4, 1, 1)).astype(np.float32)
    beta = (mean.astype(np.float64) * s + 1e-4).astype(np.float32)
    original = with_computed_bias(tensor("s", s), tensor("mean", mean), tensor("beta", beta))
    exact = (beta.astype(np.float64) - mean.astype(np.float64) * s).reshape(-1)
    weight = initializer(original, "w") * s.reshape(-1, 1, 1, 1)
    folded = model([helper.make_node("Conv", ["x", "v", "b"], ["y"])], [tensor("v", weight), tensor("b", exact)])
    found = verdict(original, folded)
    assert found.verdict == "equal", found.reason


def test_one_value_keeps_its_name_and_another_does_not():
    """A Conv's name stands for its BatchNormalization's value, and the Relu's name for the Relu's own value still."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    parameters = batchnorm_parameters(4)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Mul", ["r", "half"], ["h"]),
        helper.make_node("Conv", ["h", "w2"], ["y"]),
    ]
    original = model(nodes, [tensor("w", first), tensor("w2", second), tensor("half", 0.5), *parameters])
    gamma, beta, mean, var = (initializer(original, t.name).astype(np.float64) for t in parameters)
    s = gamma / np.sqrt(var + np.float32(1e-5))
    weight = initializer(original, "w") * s.reshape(-1, 1, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v2"], ["y"]),
    ]
    folded = model(nodes, [tensor("v", weight), tensor("b", beta - s * mean), tensor("v2", second / 2)])
    found = verdict(original, folded)
    assert found.verdict == "equal", found.reason


def test_a_weight_is_judged_where_its_channel_is_zero():
    """Relu leaves nothing of a channel on ordinary inputs; a wrong weight that reads it shows on others."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    s, shift = rng.uniform(0.5, 2, 4).astype(np.float32), rng.normal(size=4)
    shared = [tensor("w", first), tensor("b", [0, 0, 0, -30])]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"]), helper.make_node("Relu", ["c"], ["r"])]
    turned = helper.make_node("Transpose", ["z"], ["y"], perm=[0, 2, 3, 1])
    behind = [
        helper.make_node("Conv", ["r", "w2"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Mul", ["t", "s"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["y"]),
    ]
    original = model([*nodes, *behind], [*shared, tensor("w2", second), tensor("s", s), tensor("shift", shift)])
    weight = second * s.reshape(-1, 1, 1, 1)
    weight[1, 3] *= 2
    last = helper.make_node("Conv", ["r", "v", "shift"], ["z"])
    folded = model([*nodes, last, turned], [*shared, tensor("v", weight), tensor("shift", shift)])
    feeds = {"x": 30 * np.random.default_rng(4).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    assert np.abs(run(original, feeds)[0] - run(folded, feeds)[0]).max() > 1
    found = verdict(original, folded)
    assert found.verdict == "different"
    assert found.blame.value == "y"


def test_places_are_seeded():
    """The same mutants in every run, byte for byte."""
    first, second = (list(mutants("one tap off by 1 %", "resnet")) for _ in range(2))
    assert [m.name for m in first] == [m.name for m in second]
    assert [m.folded for m in first] == [m.folded for m in second]
