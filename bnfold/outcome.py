"""What became of a site, and how it was called before anything was folded."""

import itertools
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from bnfold.edits import Plan
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.refusals import Code, Refusal
from bnfold.text import printable, unmarked

CONVOLUTIONS = frozenset(["Conv", "ConvTranspose"])

# A direction that failed with one of these got as far as something with weights; the other may have been hopeless.
NEAR = frozenset([
    Code.SHIFT_MEETS_PADDING, Code.OVERFLOW, Code.UNDERFLOW, Code.WEIGHTS_NOT_CONSTANT, Code.OVERRIDABLE_INITIALIZER,
    Code.QUANTIZED_WEIGHT, Code.SPARSE_WEIGHT, Code.SHAPE_MISMATCH, Code.WOULD_GROW, Code.UNSUPPORTED_TYPE,
    Code.RANGE_RISK, Code.OUTSIDE_SOURCES, Code.NON_FINITE,
])  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """A site and what became of it.

    Attributes:
        site: its nodes.
        kind: "BatchNormalization", "chain" or "branch".
        label, output, producer: how its nodes, its output and what makes its input were called before any fold.
        names, value: operator and name of its first and last node, and the name of its output, as the file has them.
        beside_conv: a Conv or ConvTranspose made its input or read its output, before any fold.
        source: its map; None where it has none.
        refusal: why it is still there, by the last attempt.
        plan: how it went; None where it is still there.
        into: what took it in.
    """

    site: Site
    kind: str
    label: str
    output: str
    producer: str | None
    beside_conv: bool = False
    source: Source | None = None
    refusal: Refusal | None = None
    plan: Plan | None = None
    into: str | None = None
    names: tuple[tuple[str, str], ...] = ()
    value: str = ""


def open_outcome(facts: GraphFacts, site: Site, beside: AbstractSet[int] | None = None) -> Outcome:
    """A site to which nothing has happened. `beside`: nodes that stood beside a Conv before; None to look now."""
    first, last = facts.nodes[site.nodes[0]], facts.nodes[site.nodes[-1]]
    source = facts.producer(first.input[site.slot]) if len(first.input) > site.slot else None
    name = label(first) if len(site.nodes) == 1 else f"{label(first)} .. {label(last)}"
    output = last.output[0] if last.output else ""
    producer = None if source is None else label(facts.nodes[source])
    stands = False
    if site.kind == "chain":
        around = (source, *(use.node for use in itertools.islice(facts.users(output), 16)))
        stands = any(node is not None and facts.op(node) in CONVOLUTIONS for node in around)
        stands = stands if beside is None else any(node in beside for node in site.nodes)
    names = tuple((node.op_type, node.name) for node in ((first,) if first is last else (first, last)))
    return Outcome(site, site.kind, name, printable(output), producer, stands, names=names, value=unmarked(output))


def both(upstream: Refusal, downstream: Refusal) -> Refusal:
    """One reason out of two: that of the direction that got further.

    That is the one which reached something with weights; upstream's if both or neither did, except that there is
    nothing upstream of a model's input.
    """
    hopeless = upstream.code == Code.NO_PRODUCER and downstream.code != Code.CONSUMER_IS_OUTPUT
    quiet = upstream.quiet or downstream.quiet
    if hopeless or (downstream.code in NEAR and upstream.code not in NEAR):
        message = f"{downstream.message}; upstream: {upstream.message}"
        return Refusal(downstream.code, message, downstream.node, quiet=quiet)
    return Refusal(upstream.code, f"{upstream.message}; downstream: {downstream.message}", upstream.node, quiet=quiet)
