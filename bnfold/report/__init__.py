"""What happened, as one tree of values. Renderers are pure functions of it and know nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnfold.verification import Verification

SCHEMA = "bnfold.report/1"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers.

    Attributes:
        nodes: nodes, those of nested graphs and local functions included.
        operators: how many nodes of each operator.
        initializers: how many initializers.
        bytes: size of the file with its external data; 0 for a model in memory.
    """

    nodes: int
    operators: Mapping[str, int]
    initializers: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SiteReport:
    """One BatchNormalization, or chain like one, and what became of it, or would.

    Attributes:
        site: its node or nodes, as a label; its output value.
        producer: what makes its input, as a label; None for a model input.
        outcome: "folded" (for `inspect`: it would fold) or "left".
        into: the nodes that take the map in.
        code, message, help: why it is left and what helps.
        notes: what the user should know of a fold.
        kind: "BatchNormalization", "chain" (of Mul, Add, ... by constants), or "branch" (a Conv merged into another).
        place: the nested graph or local function that it lies in; "" for the main graph.
        direction: "pull" (into what lies upstream), "push" (downstream), "sibling", "partial" or "merge".
    """

    site: str
    output: str
    producer: str | None
    outcome: Literal["folded", "left"]
    into: str | None = None
    code: str | None = None
    message: str = ""
    help: str = ""
    notes: tuple[str, ...] = ()
    kind: str = "BatchNormalization"
    direction: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a renderer may show.

    Attributes:
        command: "fold" or "inspect".
        version: of bnfold.
        model: the input's path; None for a model in memory.
        opset, ir_version: of the input.
        sites: one for each BatchNormalization and chain, in topological order.
        before, after: the model in numbers; `after` is None for `inspect`.
        renamed: values whose contents changed and that got a new name, old to new.
        frozen: overridable initializers that were taken for constants and removed from the inputs.
        superseded: data files of the model that was replaced that the new one does not use, and that were kept.
        removed: such data files that were removed, as no other file beside them names them.
        notes: what the user should know of the files that were written.
        verification: None where nothing was verified.
        status: in one word what the outcome is, such as "folded" or "nothing to fold".
        output: the file written; None where none was.
        undo: the undo file written with it.
        seconds: how long it took.
    """

    command: Literal["fold", "inspect"]
    version: str
    model: str | None
    opset: int
    ir_version: int
    sites: tuple[SiteReport, ...]
    before: ModelFacts
    after: ModelFacts | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    frozen: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verification: Verification | None = None
    status: str = ""
    output: str | None = None
    undo: str | None = None
    seconds: float = 0.0
    schema: str = field(default=SCHEMA)

    @property
    def folded(self) -> tuple[SiteReport, ...]:
        """The sites that fold."""
        return tuple(site for site in self.sites if site.outcome == "folded")

    @property
    def left(self) -> tuple[SiteReport, ...]:
        """The sites that stay."""
        return tuple(site for site in self.sites if site.outcome == "left")
