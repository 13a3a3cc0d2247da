"""Find, plan and apply on one document; the report says what happened to each site."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from onnx import NodeProto

import bnfold
from bnfold.document import Document
from bnfold.editor import Editor
from bnfold.find import batchnorm
from bnfold.fixpoint import fold_all
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.outcome import Outcome
from bnfold.provenance import Ledger
from bnfold.refusals import Code, Refusal
from bnfold.report import ModelFacts, Report, SiteReport
from bnfold.text import printable

Progress = Callable[[str, int, int], None]


def rewrite(
    document: Document,
    options: FoldOptions,
    *,
    command: Literal["fold", "inspect"],
    progress: Progress | None = None,
) -> Report:
    """Find, plan and apply on the document's proto; the report says what happened to each site."""
    facts = GraphFacts(document.proto, document.folder, freeze_inputs=options.freeze_inputs, lifted=document.lifted)
    before = _model_facts(document, document.path)
    editor = Editor(facts)
    ledger = Ledger() if options.provenance else None
    outcomes = fold_all(facts, editor, options, progress, ledger)
    sites = [_report(outcome) for outcome in outcomes if _is_listed(outcome, options)]
    sites += [_hidden_site(node, code) for node, code in batchnorm.hidden_sites(facts)]
    if any(site.outcome == "folded" for site in sites):
        document.changed = editor.commit()
        if ledger is not None:
            ledger.write(document.proto)
    return Report(
        command=command,
        version=bnfold.__version__,
        model=None if document.path is None else str(document.path),
        opset=facts.opset(),
        ir_version=document.proto.ir_version,
        sites=tuple(sites),
        before=before,
        after=_model_facts(document, None),
        renamed=tuple(editor.renamed),
        frozen=tuple(editor.frozen),
    )


def _is_listed(outcome: Outcome, options: FoldOptions) -> bool:
    """Whether a site that stays is worth a line: scalars and odd constants are only beside a convolution."""
    if outcome.kind != "chain" or outcome.plan is not None or options.sources == "all":
        return True
    if outcome.refusal is not None and outcome.refusal.quiet:
        return False
    if outcome.source is not None and outcome.source.affine.axes == ():
        return False
    return outcome.beside_conv or (outcome.source is not None and outcome.source.per_map)


def _report(outcome: Outcome) -> SiteReport:
    if outcome.plan is not None:
        return SiteReport(
            outcome.label, outcome.output, outcome.producer, "folded", kind=outcome.kind,
            direction=outcome.plan.direction, into=outcome.into, notes=outcome.plan.notes,
        )  # fmt: skip
    assert outcome.refusal is not None
    return _left(outcome.label, outcome.output, outcome.producer, outcome.refusal, outcome.kind)


def _hidden_site(node: NodeProto, code: Code) -> SiteReport:
    return _left(label(node), printable(next(iter(node.output), "")), None, Refusal(code, code.explanation))


def _left(name: str, output: str, producer: str | None, refusal: Refusal, kind: str = batchnorm.OP) -> SiteReport:
    code = refusal.code
    return SiteReport(
        name, output, producer, "left", kind=kind, code=code.value, message=refusal.message, help=code.help
    )


def _model_facts(document: Document, path: Path | None) -> ModelFacts:
    graph = document.proto.graph
    operators = Counter(node.op_type if not node.domain else f"{node.domain}::{node.op_type}" for node in graph.node)
    return ModelFacts(len(graph.node), dict(operators), len(graph.initializer), _bytes_on_disk(path, document))


def _bytes_on_disk(path: Path | None, document: Document) -> int:
    if path is None:
        return 0
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in document.data_files)))
