"""The order in which sites are folded: upstream in topological order, downstream against it, until nothing moves.

Pull wins: every site is first offered to what lies upstream. Those that stay are then offered downstream, the last
one first, so that of two maps in a row the second is out of the way when the first is asked. Both rounds go on
until neither folds anything, because a fold may free the way for another. What is left of a chain is cut: a part of
it may go where the whole may not.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bnfold.editor import Editor
from bnfold.edits import Plan
from bnfold.find import Site, Source, batchnorm, chain
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.plan import pull, push
from bnfold.plan.partial import partial
from bnfold.plan.residual import residual
from bnfold.plan.siblings import sibling
from bnfold.policy import unwanted
from bnfold.refusals import Code, Refusal
from bnfold.text import printable

Progress = Callable[[str, int, int], None]
CONVOLUTIONS = frozenset(["Conv", "ConvTranspose"])
LONGEST_CUT = 8  # chains of more nodes are folded whole or not at all

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
        kind: "BatchNormalization" or "chain".
        label, output, producer: how its nodes, its output and what makes its input were called before any fold.
        source: its map; None where it has none.
        refusal: why it is still there, by the last attempt.
        plan: how it went; None where it is still there.
        into: what took it in.
        beside_conv: a Conv or ConvTranspose made its input or read its output, before any fold.
    """

    site: Site
    kind: str
    label: str
    output: str
    producer: str | None
    source: Source | None = None
    refusal: Refusal | None = None
    plan: Plan | None = None
    into: str | None = None
    beside_conv: bool = False


def fold_all(
    facts: GraphFacts, editor: Editor, sites: list[Site], options: FoldOptions, progress: Progress | None
) -> list[Outcome]:
    """Fold what can be folded; one outcome for each site, in the order given, chains that were cut in pieces."""
    outcomes = [_open(facts, site) for site in sites]
    fixpoint = _Fixpoint(facts, editor, options, progress, len(outcomes))
    waiting = outcomes
    while waiting := fixpoint.round(waiting):
        pass
    for outcome in list(outcomes):
        if outcome.kind == "chain" and outcome.source is not None and 1 < len(outcome.site.nodes) <= LONGEST_CUT:
            pieces = fixpoint.cut(outcome) if outcome.plan is None else None
            if pieces:
                place = outcomes.index(outcome)
                outcomes[place : place + 1] = pieces
    waiting = [outcome for outcome in outcomes if outcome.plan is None]
    while fixpoint.has_cut and (waiting := fixpoint.round(waiting)):
        pass
    return outcomes


def _open(facts: GraphFacts, site: Site) -> Outcome:
    first, last = facts.nodes[site.nodes[0]], facts.nodes[site.nodes[-1]]
    source = facts.producer(first.input[site.slot]) if len(first.input) > site.slot else None
    name = label(first) if len(site.nodes) == 1 else f"{label(first)} .. {label(last)}"
    output = printable(last.output[0]) if last.output else ""
    producer = None if source is None else label(facts.nodes[source])
    around = (
        [source, *(use.node for use in itertools.islice(facts.users(output), 16))] if site.kind == "chain" else []
    )
    beside = any(node is not None and facts.op(node) in CONVOLUTIONS for node in around)
    return Outcome(site, site.kind, name, output, producer, beside_conv=beside)


@dataclass(slots=True)
class _Fixpoint:
    facts: GraphFacts
    editor: Editor
    options: FoldOptions
    progress: Progress | None
    total: int
    done: int = 0
    has_cut: bool = False

    def round(self, waiting: list[Outcome]) -> list[Outcome]:
        """Offer each site upstream, then those that stay downstream; returns the rest if any folded, else nothing."""
        before = self.done
        for count, outcome in enumerate(waiting):
            if self.progress is not None and count % 16 == 0:
                self.progress("fold", self.done, self.total)
            self._offer_upstream(outcome)
        rest = [outcome for outcome in waiting if outcome.plan is None]
        for outcome in reversed(rest):
            self._offer_downstream(outcome)
        rest = [outcome for outcome in rest if outcome.plan is None]
        return rest if self.done > before else []

    def _offer_upstream(self, outcome: Outcome) -> None:
        site = outcome.site
        found = (batchnorm if site.kind == batchnorm.OP else chain).source(self.facts, site)
        if isinstance(found, Refusal):
            outcome.refusal, outcome.source = found, None
            return
        outcome.source = found
        answer = self._wanted(outcome, pull(self.facts, site, found, self.options))
        if isinstance(answer, Refusal):
            beside = self._wanted(outcome, sibling(self.facts, site, found))
            if isinstance(beside, Refusal):
                beside = self._wanted(outcome, residual(self.facts, site, found, self.options))
            answer = answer if isinstance(beside, Refusal) else beside
        self._settle(outcome, answer)

    def _offer_downstream(self, outcome: Outcome) -> None:
        if outcome.source is None:
            return
        upstream = outcome.refusal
        answer = self._wanted(outcome, push(self.facts, outcome.site, outcome.source, self.options))
        if isinstance(answer, Refusal) and self.options.partial and answer.code == Code.SHIFT_MEETS_PADDING:
            left = self._wanted(outcome, partial(self.facts, outcome.site, outcome.source, self.options))
            answer = answer if isinstance(left, Refusal) else left
        if isinstance(answer, Refusal) and upstream is not None:
            answer = _both(upstream, answer)
        self._settle(outcome, answer)

    def _wanted(self, outcome: Outcome, answer: Plan | Refusal) -> Plan | Refusal:
        if isinstance(answer, Refusal):
            return answer
        assert outcome.source is not None
        return unwanted(self.facts, outcome.site, outcome.source, answer, self.options) or answer

    def _settle(self, outcome: Outcome, answer: Plan | Refusal) -> None:
        if isinstance(answer, Refusal):
            outcome.refusal = answer
            return
        outcome.plan, outcome.refusal = answer, None
        outcome.into = ", ".join(dict.fromkeys(label(self.facts.nodes[node]) for node in answer.absorbers)) or None
        self.editor.apply(answer)
        self.done += 1

    def cut(self, outcome: Outcome) -> list[Outcome] | None:
        """Two pieces of a chain of which one has been folded; None where no cut helps."""
        nodes = outcome.site.nodes
        for place in reversed(range(1, len(nodes))):  # as much as possible upstream
            head, tail = self._pieces(outcome, place)
            self._offer_upstream(head)
            if head.plan is not None:
                self.has_cut = True
                return [head, tail]
        for place in range(1, len(nodes)):  # as much as possible downstream
            head, tail = self._pieces(outcome, place)
            tail.source = self._source(tail.site)
            self._offer_downstream(tail)
            if tail.plan is not None:
                self.has_cut = True
                return [head, tail]
        return None

    def _source(self, site: Site) -> Source | None:
        found = chain.source(self.facts, site)
        return None if isinstance(found, Refusal) else found

    def _pieces(self, outcome: Outcome, place: int) -> Iterator[Outcome]:
        nodes = outcome.site.nodes
        slot = chain.mapped_slot(self.facts, nodes[place])
        yield replace(_open(self.facts, Site("chain", nodes[:place], outcome.site.slot)), refusal=outcome.refusal)
        tail = _open(self.facts, Site("chain", nodes[place:], 0 if slot is None else slot))
        yield replace(tail, refusal=outcome.refusal)


def _both(upstream: Refusal, downstream: Refusal) -> Refusal:
    """One reason out of two: that of the direction which got as far as something with weights, else upstream's."""
    if downstream.code in NEAR and upstream.code not in NEAR:
        return Refusal(downstream.code, f"{downstream.message}; upstream: {upstream.message}", downstream.node)
    return Refusal(upstream.code, f"{upstream.message}; downstream: {downstream.message}", upstream.node)
