"""The order in which a file lists its nodes, among those that the graph allows, decides nothing."""

import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from tests.conftest import MODELS, random_feeds, run
from tests.folding import fold, graph
from tests.random_graphs.examine import reordered
from tests.random_graphs.judge import captures

NAMES = sorted(path.stem for path in MODELS.glob("*.onnx") if path.stem.startswith(("digits", "rep")))
NAMES += ["fastvit", "levit", "mobileone", "dpn", "shufflenet"]


def picked(proto: ModelProto, index: int) -> ModelProto:
    """The topological order that always takes the first (0) or last (-1) of the nodes that are ready."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    waiting = list(proto.graph.node)
    made = {name for node in waiting for name in node.output}
    del copy.graph.node[:]
    while waiting:
        ready = [i for i, node in enumerate(waiting) if not made & {*node.input, *captures(node)}]
        node = waiting.pop(ready[index])
        made -= set(node.output)
        copy.graph.node.append(node)
    return copy


def orders(proto: ModelProto, seed: int) -> list[ModelProto]:
    """Other orders of the nodes: two at random, and the two in which what is ready waits longest and not at all."""
    rng = np.random.default_rng(seed)
    return [reordered(proto, rng), reordered(proto, rng), picked(proto, -1), picked(proto, 0)]


def told(result):
    """All that is said of each site, by its output."""
    return sorted(
        (site.output, site.site, site.kind, site.outcome, site.direction or "", site.code or "", site.into or "",
         site.message or "")
        for site in result.report.sites
    )  # fmt: skip


def operators(proto: ModelProto):
    """How many nodes there are of each operator."""
    return Counter(node.op_type for node in proto.graph.node)


def contents(proto: ModelProto):
    """Every node by what it makes, with what it reads: an initializer stands for its numbers, whatever its name."""
    held = {t.name: (t.dims[:], t.data_type, numpy_helper.to_array(t).tobytes()) for t in proto.graph.initializer}
    made = {}
    for node in proto.graph.node:
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        made[tuple(node.output)] = (node.op_type, [held.get(name, name) for name in node.input], attributes)
    return made


def assert_order_does_not_matter(proto: ModelProto, others, **options):
    """Sites, codes, messages, nodes and numbers are the same; so are the outputs, to the last bit."""
    first = fold(proto, **options)
    feeds = random_feeds(proto)
    expected = run(first.model, feeds)
    names = [value.name for value in proto.graph.output]
    for other in others:
        assert sorted(n.SerializeToString(deterministic=True) for n in other.graph.node) == sorted(
            n.SerializeToString(deterministic=True) for n in proto.graph.node
        )
        second = fold(other, **options)
        assert told(second) == told(first)
        assert operators(second.model) == operators(first.model)
        assert sorted(second.renamed) == sorted(first.renamed)
        assert contents(second.model) == contents(first.model)
        for name, one, two in zip(names, expected, run(second.model, feeds), strict=True):
            assert np.array_equal(one, two), name
    return first


@pytest.mark.parametrize("options", [{}, {"sources": "all", "merge_branches": True}], ids=["default", "all_merged"])
@pytest.mark.parametrize("name", NAMES)
def test_real_models(name, options):
    """Shuffled files of real networks fold alike."""
    proto = onnx.load(MODELS / f"{name}.onnx")
    others = orders(proto, len(name))
    assert any([n.name for n in other.graph.node] != [n.name for n in proto.graph.node] for other in others)
    assert assert_order_does_not_matter(proto, others, **options).folded


def every_order(proto: ModelProto, most: int = 150) -> list[ModelProto]:
    """All orders of a few nodes that the graph allows, or `most` of them."""
    found = []
    for nodes in itertools.permutations(proto.graph.node):
        known = {t.name for t in proto.graph.initializer} | {v.name for v in proto.graph.input} | {""}
        for node in nodes:
            if not known.issuperset(node.input):
                break
            known.update(node.output)
        else:
            other = ModelProto()
            other.CopyFrom(proto)
            del other.graph.node[:]
            other.graph.node.extend(nodes)
            found.append(other)
    return found[:: max(1, len(found) // most)]


PAD = "pads = [1, 1, 1, 1]"
SMALL = {
    "repvgg": (
        (f"c = Conv <{PAD}> (x, w)\ncn = BN <maps = 4> (c)\nd = Conv (x, v)\ndn = BN <maps = 4> (d)\n"
         "n = BN <maps = 4> (x)\na = Add (cn, dn)\ny = Add (a, n)"),
        ("y",), {"merge_branches": True}),
    "two_taps": (
        (f"c = Conv <{PAD}> (x, w)\nd = Conv <{PAD}> (x, u)\nm = BN <maps = 4> (x)\nn = BN <maps = 4> (x)\n"
         "a = Add (m, c)\nb = Add (n, d)\ny = Add (a, b)"),
        ("y",), {}),
    "two_maps_of_one_conv": ("c = Conv (x, w)\ny = BN <maps = 4> (c)\nz = BN <maps = 4> (c)", ("y", "z"), {}),
    "two_clones": (
        "c = Conv (x, w)\ny = BN <maps = 4> (c)\nz = BN <maps = 4> (c)\nr = Relu (c)", ("y", "z", "r"),
        {"clone_shared": True}),
    "two_readers_refuse": (
        f"n = BN <maps = 4> (x)\ny = Conv <{PAD}> (n, w)\nz = Relu (n)\np = Softmax (n)", ("y", "z", "p"), {}),
    "relu_first": (f"n = BN <maps = 4> (x)\nb = Conv <{PAD}> (n, w)\na = Relu (n)", ("b", "a"), {}),
    "shared_weight": (
        ("c = Conv (x, w)\ny = BN <maps = 4> (c)\nd = Conv (x, w)\nz = BN <maps = 4> (d)\n"
         "e = Conv (x, w)\nq = Relu (e)"),
        ("y", "z", "q"), {}),
    "pull_or_push": (
        ("c = Conv (x, v)\nm = BN <maps = 4> (c)\nk = Conv (m, v)\nn = BN <maps = 4> (x)\nl = Conv (n, v)\n"
         "y = Add (k, l)"),
        ("y",), {}),
    "partial": (
        f"n = BN <maps = 4> (x)\ny = Conv <{PAD}> (n, w)\nz = Conv (n, v)\nr = Conv <{PAD}> (n, u)", ("y", "z", "r"),
        {"partial": True}),
    "concat": (
        ("c = Conv (x, w)\nd = Conv (x, u)\na = Concat <axis = 1> (c, d)\nn = BN <maps = 8> (a)\ne = Relu (n)\n"
         "y = Exp (n)"),
        ("y", "e"), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL)
def test_small_graphs(case):
    """Branches, shared values, several readers, clones: in every order."""
    text, outputs, options = SMALL[case]
    held = {"w": (4, 4, 3, 3), "u": (4, 4, 3, 3), "v": (4, 4, 1, 1)}
    held = {name: shape for name, shape in held.items() if f", {name})" in text}
    proto = graph(text, **held, outputs=outputs)
    others = every_order(proto)
    assert len(others) > 1
    assert_order_does_not_matter(proto, others, **options)
