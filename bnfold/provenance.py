"""What was folded into a node, written beside it in the model's metadata.

From IR 10 on a node that took maps in has the metadata entry `bnfold.folded`; below, where nodes have no metadata,
the model has one, by the name of each node's first output. The text is compact JSON without times and paths:

    node:   {"bnfold": "0.1.0", "sites": [SITE, ...]}
    model:  {"bnfold": "0.1.0", "nodes": {"y": [SITE, ...], ...}}
    SITE:   {"nodes": [["BatchNormalization", "bn1"]], "output": "y", "kind": "BatchNormalization",
             "direction": "pull", "gamma": D, "beta": D, "mean": D, "var": D, "epsilon": 1e-05}

`nodes` are operator and name of the first and the last node of the site. A chain has the digests `scale` and `shift`
of the float64 arrays that it comes to; a merged branch has none. D, a digest, is the first 16 hex digits of the
SHA-256 of `float32[64]` (type and shape) followed by the numbers, little-endian, in C order. In a function that is
called several times, each time with its own numbers, they are those of the first call, and "calls" says how many.

A later fold that folds something into a node again replaces that node's entry.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

import bnfold
from bnfold.find import Source
from bnfold.find.batchnorm import PARAMETERS
from bnfold.graph import GraphFacts
from bnfold.nodes import nested_nodes
from bnfold.outcome import Outcome
from bnfold.rounding import Array

KEY = "bnfold.folded"
NODE_METADATA_SINCE = 10  # IR version
MOST_SITES = 64  # listed for one node; of the rest, the number
LONGEST_NAME = 200  # characters of a name: one entry may stand in many nodes


class Ledger:
    """What goes into which node, noted while it is folded and written at the end."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[NodeProto, list[str]]] = {}  # the node is kept, so that its id stays its own

    def note(self, outcome: Outcome, facts: GraphFacts, copies: Mapping[int, int]) -> None:
        """Take note of a site that was folded just now.

        What had gone into a node that this fold removed has gone on with it, into those that take it in.

        Args:
            outcome: the site and its plan.
            facts: of the graph or function that it is in.
            copies: the nodes that were cloned for this plan, and the copy of each.
        """
        assert outcome.plan is not None
        nodes = facts.nodes
        absorbers = list(dict.fromkeys(outcome.plan.absorbers))
        passed_on = [entry for index in outcome.plan.removed for entry in self._take(nodes[index])]
        entry = _entry(outcome, facts.contexts)
        for index in absorbers:
            taker = nodes[copies.get(index, index)]
            inherited = self._of(nodes[index]) if index in copies else []
            held = self._held.setdefault(id(taker), (taker, []))[1]
            held += [*inherited, *passed_on, entry]

    def write(self, model: ModelProto) -> None:
        """Put what was noted into the metadata of `model`, whose nodes these are."""
        held = [(node, entries) for node, entries in self._held.values() if entries]
        if not held:
            return
        version = json.dumps(bnfold.__version__)
        if model.ir_version >= NODE_METADATA_SINCE:
            for node, entries in held:
                _set(node.metadata_props, f'{{"bnfold":{version},"sites":{_listed(entries)}}}')
            return
        noted: dict[str, list[str]] = {}
        for node, entries in held:
            noted.setdefault(next(filter(None, node.output), ""), []).extend(entries)
        texts = _kept(model) | {output: _listed(entries) for output, entries in noted.items()}
        listed = ",".join(f"{json.dumps(output)}:{text}" for output, text in texts.items())
        _set(model.metadata_props, f'{{"bnfold":{version},"nodes":{{{listed}}}}}')

    def _of(self, node: NodeProto) -> list[str]:
        return self._held[id(node)][1] if id(node) in self._held else []

    def _take(self, node: NodeProto) -> list[str]:
        entries = self._of(node)
        self._held.pop(id(node), None)
        return entries


def digest(array: Array) -> str:
    """The digest of an array: 16 hex digits that stand for its type, shape and numbers."""
    shape = ",".join(map(str, array.shape))
    return sha256(f"{_type_name(array.dtype)}[{shape}]".encode() + array.tobytes()).hexdigest()[:16]


@functools.cache
def _type_name(dtype: np.dtype) -> str:
    return dtype.name  # which numpy makes up anew each time


def _entry(outcome: Outcome, calls: int) -> str:
    """A site as JSON. Written by hand: a model may have thousands."""
    assert outcome.plan is not None
    nodes = ",".join(f"[{_quoted(op)},{_quoted(name)}]" for op, name in outcome.names)
    direction, source = outcome.plan.direction, outcome.source
    what = f'"nodes":[{nodes}],"output":{_quoted(outcome.value)},"kind":"{outcome.kind}","direction":"{direction}"'
    if source is None:
        return f"{{{what}}}"
    named = zip(PARAMETERS, source.parameters, strict=True) if source.parameters else _combined(source)
    digests = ",".join([f'"{name}":"{digest(array)}"' for name, array in named])
    epsilon = f',"epsilon":{source.epsilon!r}' if source.parameters else ""
    of = f',"calls":{calls}' if calls > 1 else ""
    return f"{{{what},{digests}{epsilon}{of}}}"


def _combined(source: Source) -> tuple[tuple[str, Array], ...]:
    return ("scale", source.affine.scale), ("shift", source.affine.shift)


def _listed(entries: list[str]) -> str:
    """Sites as a JSON list."""
    rest = len(entries) - MOST_SITES
    more = [f'{{"more":{rest}}}'] if rest > 0 else []
    return f"[{','.join([*entries[:MOST_SITES], *more])}]"


def _kept(model: ModelProto) -> dict[str, str]:
    """What an earlier fold noted in the model's metadata, of nodes that are still there; {} where it is no JSON."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "")
    if not text:
        return {}
    try:
        noted = json.loads(text)["nodes"]
        outputs = set(_outputs(model))
        return {
            output: json.dumps(sites, separators=(",", ":")) for output, sites in noted.items() if output in outputs
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return {}


def _outputs(model: ModelProto) -> Iterator[str]:
    """The names of everything that a node makes, at any depth and in functions."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in (*nodes, *nested_nodes(nodes)):
            yield from node.output


def _set(metadata: Any, value: str) -> None:
    """Set our entry: in its place where there is one, else at the end."""
    held = [entry for entry in metadata if entry.key == KEY] or [metadata.add(key=KEY)]
    held[0].value = value


def _quoted(text: str) -> str:
    """A name as JSON, cut where it is longer than names are."""
    return _quote(text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}...")


_quote: Callable[[str], str] = json.encoder.encode_basestring_ascii
