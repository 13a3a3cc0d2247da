"""Find, plan and apply on one document; the report says what happened to each site."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from onnx import NodeProto

import bnfold
from bnfold.document import Document
from bnfold.editor import Editor
from bnfold.find import batchnorm
from bnfold.fixpoint import fold_all
from bnfold.functions import open_functions
from bnfold.graph import GraphFacts
from bnfold.nodes import label, nested_nodes
from bnfold.options import FoldOptions
from bnfold.outcome import Outcome
from bnfold.provenance import Ledger
from bnfold.refusals import Code, Refusal
from bnfold.report import ModelFacts, Report, SiteReport
from bnfold.scopes import open_scopes
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
    before = _model_facts(document, document.path)
    ledger = Ledger() if options.provenance else None
    with open_scopes(document.proto.graph) as scopes:
        facts = GraphFacts(
            document.proto,
            document.folder,
            freeze_inputs=options.freeze_inputs,
            lifted=document.lifted,
            scopes=scopes,
        )
        editor = Editor(facts)
        with open_functions(document, editor) as functions:
            sites = _fold([editor, *functions.editors], options, progress, ledger)
            sites += [_hidden_site(node, code) for node, code in batchnorm.hidden_sites(facts, functions.closed)]
            if any(site.outcome == "folded" for site in sites):
                for each in (editor, *functions.editors) if functions.editors else ():
                    each.settle()
                for inner in functions.editors:
                    inner.commit()
                document.changed = editor.commit()
    if ledger is not None:  # now that every name is as the file has it
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
        renamed=tuple(pair for each in (editor, *functions.editors) for pair in each.renamed),
        frozen=tuple(editor.frozen),
    )


def _fold(
    editors: list[Editor], options: FoldOptions, progress: Progress | None, ledger: Ledger | None
) -> list[SiteReport]:
    """Fold the main graph, then each function."""
    sites: list[SiteReport] = []
    for editor in editors:
        outcomes = fold_all(editor.facts, editor, options, progress, ledger)
        sites += [_report(editor.facts, outcome) for outcome in outcomes if _is_listed(outcome, options)]
    return sites


def _is_listed(outcome: Outcome, options: FoldOptions) -> bool:
    """Whether a site that stays is worth a line: scalars and odd constants are only beside a convolution."""
    if outcome.kind != "chain" or outcome.plan is not None or options.sources == "all":
        return True
    if outcome.refusal is not None and outcome.refusal.quiet:
        return False
    if outcome.source is not None and outcome.source.affine.axes == ():
        return False
    return outcome.beside_conv or (outcome.source is not None and outcome.source.per_map)


def _report(facts: GraphFacts, outcome: Outcome) -> SiteReport:
    place = facts.scopes[facts.homes[outcome.site.nodes[0]]].place
    if outcome.plan is not None:
        return SiteReport(
            outcome.label, outcome.output, outcome.producer, "folded", kind=outcome.kind,
            direction=outcome.plan.direction, into=outcome.into, notes=outcome.plan.notes, place=place,
        )  # fmt: skip
    assert outcome.refusal is not None
    return replace(_left(outcome.label, outcome.output, outcome.producer, outcome.refusal, outcome.kind), place=place)


def _hidden_site(node: NodeProto, code: Code) -> SiteReport:
    return _left(label(node), printable(next(iter(node.output), "")), None, Refusal(code, code.explanation))


def _left(name: str, output: str, producer: str | None, refusal: Refusal, kind: str = batchnorm.OP) -> SiteReport:
    code = refusal.code
    return SiteReport(
        name, output, producer, "left", kind=kind, code=code.value, message=refusal.message, help=code.help
    )


def _model_facts(document: Document, path: Path | None) -> ModelFacts:
    proto = document.proto
    operators: Counter[str] = Counter()
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    for body in bodies:
        for nodes in (body, nested_nodes(body)):
            operators.update(node.op_type if not node.domain else f"{node.domain}::{node.op_type}" for node in nodes)
    size = _bytes_on_disk(path, document)
    return ModelFacts(operators.total(), dict(operators), len(proto.graph.initializer), size)


def _bytes_on_disk(path: Path | None, document: Document) -> int:
    if path is None:
        return 0
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in document.data_files)))
