"""The order in which sites are folded: upstream in topological order, downstream against it, until nothing moves.

Pull wins: every site is first offered to what lies upstream. Those that stay are then offered downstream, the last
one first, so that of two maps in a row the second is out of the way when the first is asked. A fold may free the way
for another, or join two chains, so sites are found anew until nothing folds any more. Then what is left of a chain is
cut, because a part of it may go where the whole may not; and branches are merged, where that is asked for.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bnfold.affine import TooManyMapsError
from bnfold.editor import Editor
from bnfold.edits import Plan, TurnIntoAdd, together
from bnfold.errors import ByReferenceError
from bnfold.find import Site, Source, batchnorm, chain
from bnfold.find.sites import find_sites, is_wanted
from bnfold.graph import GraphFacts
from bnfold.merge import merges
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.outcome import Outcome, both, open_outcome
from bnfold.plan import pull, push
from bnfold.plan.partial import partial
from bnfold.plan.residual import residual
from bnfold.plan.siblings import sibling
from bnfold.policy import crossing, too_many_copies, unwanted
from bnfold.provenance import Ledger
from bnfold.refusals import Code, Refusal

Progress = Callable[[str, int, int], None]
Way = Callable[[GraphFacts, Site, Source, FoldOptions], Plan | Refusal]
LONGEST_CUT = 8  # chains of more nodes are folded whole or not at all


def fold_all(
    facts: GraphFacts,
    editor: Editor,
    options: FoldOptions,
    progress: Progress | None = None,
    ledger: Ledger | None = None,
) -> list[Outcome]:
    """Fold what can be folded; one outcome for each site, in the order of the file. `ledger` takes note."""
    fixpoint = _Fixpoint(facts, editor, options, progress, ledger)
    waiting = fixpoint.find()
    while fixpoint.round(waiting) or fixpoint.cut_all(waiting) or fixpoint.merge():
        waiting = fixpoint.find()
    left = [outcome for outcome in waiting if not fixpoint.turned.issuperset(outcome.site.nodes)]
    return sorted([*fixpoint.folded, *left], key=lambda outcome: outcome.site.nodes[0])


@dataclass(slots=True)
class _Fixpoint:
    facts: GraphFacts
    editor: Editor
    options: FoldOptions
    progress: Progress | None
    ledger: Ledger | None
    folded: list[Outcome] = field(default_factory=list)
    seen: dict[tuple[str, tuple[int, ...]], Outcome] = field(default_factory=dict)
    beside: set[int] = field(default_factory=set)
    turned: set[int] = field(default_factory=set)  # into an Add: what a fold leaves is no site of its own

    def find(self) -> list[Outcome]:
        """The sites that are there now; one that was there before keeps what it was called then."""
        first = not self.seen
        self.facts.changed()
        if not first:
            self.editor.repin()
        found: list[Outcome] = []
        for site in find_sites(self.facts, self.options):
            key = (site.kind, site.nodes)  # a BatchNormalization may have become an Add
            if key not in self.seen:
                outcome = open_outcome(self.facts, site, None if first else self.beside)
                self.seen[key] = outcome
                self.beside.update(site.nodes if outcome.beside_conv else ())
            found.append(self.seen[key])
        return found

    def round(self, waiting: list[Outcome]) -> bool:
        """Offer each site upstream, then those that stay downstream; whether any folded."""
        before = len(self.folded)
        for count, outcome in enumerate(waiting):
            if self.progress is not None and count % 16 == 0:
                self.progress("fold", len(self.folded), len(self.folded) + len(waiting) - count)
            self._offer_upstream(outcome)
        for outcome in reversed([outcome for outcome in waiting if outcome.plan is None]):
            self._offer_downstream(outcome)
        return len(self.folded) > before

    def cut_all(self, waiting: list[Outcome]) -> bool:
        """Cut every chain that can be; whether there was one."""
        return sum([self.cut(outcome) for outcome in waiting]) > 0

    def cut(self, outcome: Outcome) -> bool:
        """Fold a part of a chain that does not go as a whole; whether there is one."""
        nodes = outcome.site.nodes
        if outcome.kind != "chain" or outcome.source is None or not 1 < len(nodes) <= LONGEST_CUT:
            return False
        if outcome.refusal is not None and outcome.refusal.code == Code.OUTSIDE_SOURCES:
            return False
        if not self.facts.removed.isdisjoint(nodes):
            return False
        for head in (self._piece(outcome, 0, place) for place in range(len(nodes) - 1, 0, -1)):
            self._offer_upstream(head)
            if head.plan is not None:
                return True
        for tail in (self._piece(outcome, place, len(nodes)) for place in range(1, len(nodes))):
            self._offer_downstream(tail)
            if tail.plan is not None:
                return True
        return False

    def merge(self) -> bool:
        """Merge branches, where that is asked for; whether any could be."""
        before = len(self.folded)
        for plan, gone, into in merges(self.facts) if self.options.merge_branches else ():
            if is_wanted(self.facts, (gone,), self.options):
                outcome = replace(open_outcome(self.facts, Site("branch", (gone,))), plan=plan, into=into)
                self._apply(outcome, plan)
        return len(self.folded) > before

    def _piece(self, outcome: Outcome, start: int, stop: int) -> Outcome:
        nodes = outcome.site.nodes[start:stop]
        slot = chain.mapped_slot(self.facts, nodes[0])
        piece = open_outcome(self.facts, Site("chain", nodes, 0 if slot is None else slot))
        found = self._source(piece.site)
        piece.source = None if isinstance(found, Refusal) else found
        return piece

    def _source(self, site: Site) -> Source | Refusal:
        """The map of a site, or why it is none."""
        read = batchnorm.source if site.kind == batchnorm.OP else chain.source
        try:
            return read(self.facts, site)
        except ByReferenceError as error:
            return by_reference(self.facts, error)

    def _offer_upstream(self, outcome: Outcome) -> None:
        found = self._source(outcome.site)
        if isinstance(found, Refusal):
            outcome.refusal, outcome.source = found, None
            return
        outcome.source = found
        self._settle(outcome, self._upstream(outcome.site, found))

    def _upstream(self, site: Site, source: Source) -> Plan | Refusal:
        """The plan of the first way that is open; else why what lies upstream cannot."""
        refusal: Refusal | None = None
        for way in (pull, sibling, residual):
            answer = self._tried(way, site, source)
            if isinstance(answer, Plan):
                return answer
            refusal = refusal or answer
        assert refusal is not None
        return refusal

    def _tried(self, way: Way, site: Site, source: Source) -> Plan | Refusal:
        """The answer of one way to fold, if it is wanted; in a function, that of every call together."""
        answer = self._asked(way, site, source)
        if isinstance(answer, Refusal):
            return answer
        refusal = (
            crossing(self.facts, answer)
            or unwanted(self.facts, site, source, answer, self.options)
            or too_many_copies(self.facts, answer)
        )
        if refusal is not None or self.facts.contexts == 1:
            return refusal or answer
        plans = [answer]
        for context in range(1, self.facts.contexts):
            with self.facts.using(context):
                found = self._source(site)
                plan = found if isinstance(found, Refusal) else self._asked(way, site, found)
            if isinstance(plan, Refusal):
                return replace(plan, message=f"{plan.message} (in call {context + 1} of {self.facts.contexts})")
            plans.append(plan)
        return together(plans) or Refusal(Code.IN_FUNCTION, "the calls of the function would be folded differently")

    def _asked(self, way: Way, site: Site, source: Source) -> Plan | Refusal:
        """The answer of one way to fold.

        Planning changes nothing, so a model that contradicts itself (ranks, lengths, missing inputs) may stop it
        anywhere, and costs no more than this site.
        """
        try:
            return way(self.facts, site, source, self.options)
        except TooManyMapsError as error:
            return Refusal(Code.WOULD_GROW, f"the map would have to be spelled out: {error}")
        except ByReferenceError as error:
            return by_reference(self.facts, error)
        except (IndexError, KeyError, ValueError, ArithmeticError) as error:
            if os.environ.get("BNFOLD_DEBUG"):
                raise
            return Refusal(Code.SHAPE_MISMATCH, f"ranks or lengths around it contradict each other ({error!r})")

    def _offer_downstream(self, outcome: Outcome) -> None:
        if outcome.source is not None and outcome.kind == "chain":  # its constants may have changed since
            found = self._source(outcome.site)
            outcome.source = None if isinstance(found, Refusal) else found
        if outcome.source is None:
            return
        upstream = outcome.refusal
        site, source = outcome.site, outcome.source
        answer = self._tried(push, site, source)
        if isinstance(answer, Refusal) and self.options.partial and answer.code == Code.SHIFT_MEETS_PADDING:
            left = self._tried(partial, site, source)
            answer = answer if isinstance(left, Refusal) and left.code != Code.RANGE_RISK else left
        if isinstance(answer, Refusal) and upstream is not None:
            answer = both(upstream, answer)
        self._settle(outcome, answer)

    def _settle(self, outcome: Outcome, answer: Plan | Refusal) -> None:
        if isinstance(answer, Refusal):
            outcome.refusal = answer
            return
        outcome.plan, outcome.refusal = answer, None
        outcome.into = ", ".join(dict.fromkeys(label(self.facts.nodes[node]) for node in answer.absorbers)) or None
        self._apply(outcome, answer)
        self.turned.update(edit.node for edit in answer.edits if isinstance(edit, TurnIntoAdd))

    def _apply(self, outcome: Outcome, plan: Plan) -> None:
        copies = self.editor.apply(plan)
        self.folded.append(outcome)
        if self.ledger is not None:
            self.ledger.note(outcome, self.facts, copies)


def by_reference(facts: GraphFacts, error: ByReferenceError) -> Refusal:
    """The reason why an attribute that has no one value stops a fold.

    Raises:
        ByReferenceError: there is nothing that it could refer to.
    """
    if not facts.in_function:
        raise error
    return Refusal(Code.IN_FUNCTION, str(error))
