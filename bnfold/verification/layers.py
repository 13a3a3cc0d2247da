"""The layers that judge fold by fold: by weight and bias, and by what both models make of the same numbers.

`open_sites` finds what two models share and where they differ; `Sites.judge` gives a verdict on each such place. It
needs the numbers that the models had at the values in `Sites.needed`.

Tools rename values. Where one seems wrong, other readings are tried: its name stands for a later value of the
original (a Conv that keeps its name when its BatchNormalization is gone); or for no value of it, where all that reads
it is made differently too (a factor that was moved past it). Only if no reading is right the value is wrong.
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from google.protobuf.message import EncodeError
from onnx import ModelProto

from bnfold.document import Document
from bnfold.graph import GraphFacts
from bnfold.relocated import Relocated
from bnfold.scopes import open_scopes
from bnfold.text import SCOPE_MARK
from bnfold.verification.inlined import inlined
from bnfold.verification.pairing import Pairing, aliases, by_edges, pair, same_constant, trusted
from bnfold.verification.runs import Reach, Runs, ran_product, ran_segment, reach_of
from bnfold.verification.runtime import Model, in_memory
from bnfold.verification.segments import Frontier, frontier
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.sites import by_values
from bnfold.verification.weights import AlgebraicCheck, by_algebra

MOVES = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
READINGS = 4  # how often names are read anew before a value counts as wrong


@dataclass
class Reading:
    """One reading of which names are the same values, and what is known of it without running anything."""

    pairing: Pairing
    algebra: dict[str, AlgebraicCheck | None] = field(default_factory=dict)
    starts: dict[str, Frontier] = field(default_factory=dict)
    reaches: dict[str, Reach] = field(default_factory=dict)
    values: dict[str, SiteCheck] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Judge each changed value by weight and bias."""
        for value in self.pairing.changed:
            self.algebra[value] = by_algebra(self.pairing, value)
            if self.algebra[value] is None:
                self.starts[value] = frontier(self.pairing, value)

    @property
    def needed(self) -> set[str]:
        """The values, by their names in the original, whose numbers are needed."""
        found = {name for start in self.starts.values() for name in start.names}
        found |= {site.original.reads for site in self.algebra.values() if site is not None}
        return found | set(self.pairing.changed)

    def reads(self, value: str) -> AbstractSet[str]:
        """The values of the original that a changed value is made of."""
        site = self.algebra[value]
        return self.starts[value].names if site is None else {site.original.reads}

    def judge(self, runs: Runs) -> tuple[SiteCheck, ...]:
        """A verdict on every changed value."""
        return tuple(self._judged(value, site, runs) for value, site in self.algebra.items())

    def _judged(self, value: str, site: AlgebraicCheck | None, runs: Runs) -> SiteCheck:
        check = self._by_numbers(value, site, runs)
        first, second = runs.original.get(value), runs.folded.get(self.pairing.names[value])
        if check.wrong or first is None or second is None or first.shape == second.shape:
            return check
        problem = f"shape {second.shape} instead of {first.shape}"
        return replace(check, covered=True, layer="values", times=np.inf, problem=problem)

    def _by_numbers(self, value: str, site: AlgebraicCheck | None, runs: Runs) -> SiteCheck:
        if site is None:
            if value not in self.values or not self.starts[value].affine:
                self.values[value] = by_values(self.pairing, value, runs.original)
            check = self.values[value]
            if not runs.folded and check.times == np.inf:  # shapes do not fit, and the folded model does not run
                return replace(check, covered=True)
            return ran_segment(self.pairing, check, self.starts[value], runs) if check.equal else check
        if site.check.wrong or not runs.folded:
            return site.check
        if value not in self.reaches:
            self.reaches[value] = reach_of(site.folded)
        return ran_product(self.pairing, site, self.reaches[value], runs)


class Sites:
    """Where two models differ.

    Attributes:
        pairing: what they share, by name.
        models: both, to be run with values put out: without functions, as their values have names here only.
    """

    def __init__(self, pairing: Pairing, models: tuple[Model, Model]) -> None:
        self.pairing = pairing
        self.models = models
        self._reading = Reading(pairing)
        self._aliases = aliases(pairing)
        suspects = {v for v, site in self._reading.algebra.items() if site is None or site.check.wrong}
        renamed = {here: there for here, there in self._aliases.items() if pairing.shared[here] in suspects}
        self._renamed = Reading(pair(pairing.original, pairing.folded, renamed)) if renamed else None

    def by_edges(self) -> "Sites":
        """The same where no names inside are trusted."""
        return Sites(by_edges(self.pairing), self.models)

    @property
    def reading(self) -> Pairing:
        """What they share, in the reading that explains most."""
        return self._reading.pairing

    @property
    def outputs_are_shared(self) -> bool:
        """Whether every output is made by nodes of both models, or is the same constant in both."""
        original, folded = self.pairing.original, self.pairing.folded
        constant = [value.name for value in original.model.graph.output if value.name not in self.pairing.names]
        pairs = [(original.constants.find(name), folded.constants.find(name)) for name in constant]
        return all(a is not None and b is not None and same_constant(a, b) for a, b in pairs)

    @property
    def shared(self) -> int:
        """How many values that nodes make are in both models."""
        return sum(name in self.pairing.folded.producers for name in self.pairing.shared)

    @property
    def needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The values of the main graphs whose numbers are needed: as the original and the folded one name them."""
        first: set[str] = set()
        second: set[str] = set()
        for reading in filter(None, (self._reading, self._renamed)):
            first |= reading.needed
            second |= {reading.pairing.names[name] for name in reading.needed}
        return _in_main(first), _in_main(second)

    def judge(self, runs: Runs) -> tuple[SiteCheck, ...]:
        """A verdict on every value that the two make differently; the reading that explains most is kept."""
        checks = self._reading.judge(runs)
        for _ in range(READINGS):
            wrong = _wrong(checks)
            better = next(self._better(checks, runs), None) if wrong else None
            if better is None:
                break
            self._reading, checks = better
        return checks

    def _better(self, checks: tuple[SiteCheck, ...], runs: Runs) -> Iterator[tuple[Reading, tuple[SiteCheck, ...]]]:
        """Readings by which less is wrong, and no less could be judged."""
        wrong, unjudged = _wrong(checks), sum(not check.covered for check in checks)
        for pairing in self._readings(wrong, runs):
            if len(pairing.names) < len(pairing.shared):  # two values for one: one would not be judged
                continue
            reading = Reading(pairing)
            found = reading.judge(runs)
            if len(_wrong(found)) < len(wrong) and sum(not check.covered for check in found) <= unjudged:
                yield reading, found

    def _readings(self, wrong: set[str], runs: Runs) -> Iterator[Pairing]:
        """Other readings of the names of values that seem wrong."""
        now = self._reading.pairing
        original, folded = now.original, now.folded
        more = {here: there for here, there in self._aliases.items() if now.shared.get(here) in wrong}
        more = {here: there for here, there in more.items() if now.shared[here] != there}
        if more:
            second = pair(original, folded, now.renamed | more, now.dropped)
            yield second
            still = _wrong(Reading(second).judge(runs))
            kept = {here: there for here, there in more.items() if there not in still}
            if kept and kept != more:
                yield pair(original, folded, now.renamed | kept, now.dropped)
        gone = {value for suspect in wrong for value in self._made_up_for(suspect, wrong)}
        if gone:
            yield pair(original, folded, now.renamed, now.dropped | gone)

    def _made_up_for(self, value: str, wrong: set[str]) -> set[str]:
        """The value and those that it is moved to, where all that reads them seems wrong too; nothing elsewhere.

        So it is where a factor was moved past the value, or past the Reshape behind it.
        """
        pairing = self._reading.pairing
        folded, changed = pairing.folded, set(pairing.changed)
        found, open_ = {value}, [value]
        while open_:
            name = pairing.names[open_.pop()]
            if name in folded.outputs or not folded.users(name):
                return set()
            for index in {use.node for use in folded.users(name)}:
                for made in filter(None, folded.nodes[index].output):
                    there = pairing.shared.get(made)
                    if there is None or there in wrong:
                        continue
                    if there in changed or folded.op(index) not in MOVES:
                        return set()
                    if there not in found:
                        found.add(there)
                        open_.append(there)
        readers = {other for other in pairing.changed if found & self._reading.reads(other)}
        return found if readers and readers <= wrong else set()


def _wrong(checks: tuple[SiteCheck, ...]) -> set[str]:
    return {check.value for check in checks if check.wrong}


def _in_main(names: set[str]) -> frozenset[str]:
    return frozenset(name for name in names if SCOPE_MARK not in name)


@contextlib.contextmanager
def open_sites(original: Model, folded: Model, documents: tuple[Document, Document] | None = None) -> Iterator[Sites]:
    """What two models share, for as long as the block runs; `documents` are both, where they have been read already.

    Raises:
        InvalidModelError: one of them cannot be read.
    """
    one, other = documents or (None, None)
    with _facts(original, one) as (first, first_model), _facts(folded, other) as (second, second_model):
        yield Sites(trusted(first, second), (first_model, second_model))


@contextlib.contextmanager
def _facts(model: Model, document: Document | None) -> Iterator[tuple[GraphFacts, Model]]:
    """The facts about a model, and the model to run: itself, or without functions where it has some."""
    if document is None and isinstance(model, Path):
        document = Document.open(model, follow_links=True)
    if document is not None:
        proto, folder, lifted = document.proto, document.folder, document.lifted
    else:
        assert not isinstance(model, Path)
        proto = model.with_numbers() if isinstance(model, Relocated) else ModelProto.FromString(model)
        folder, lifted = None, {}
    runnable = model
    if proto.functions and not lifted:
        proto = inlined(proto)
        with contextlib.suppress(ValueError, EncodeError):  # beyond 2 GiB
            runnable = in_memory(proto, model)
    with open_scopes(proto.graph) as scopes:
        yield GraphFacts(proto, folder, freeze_inputs=True, lifted=lifted, scopes=scopes), runnable
