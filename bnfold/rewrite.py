"""Find, plan and apply on one document; the report says what happened to each site."""

from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from onnx import NodeProto

import bnfold
from bnfold.document import Document
from bnfold.editor import Editor
from bnfold.find import Site, batchnorm, chain
from bnfold.fixpoint import Outcome, fold_all
from bnfold.graph import GraphFacts
from bnfold.merge import merge_branches
from bnfold.nodes import label
from bnfold.options import FoldOptions
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
    named = [(site, _names(facts, site)) for site in find_sites(facts, options)]
    wanted = [site for site, names in named if _is_wanted(names, options)]
    outcomes = fold_all(facts, editor, wanted, options, progress)
    if options.merge_branches:
        outcomes += merge_branches(facts, editor)
    sites = [_report(outcome) for outcome in outcomes if _is_listed(outcome, options)]
    sites += [_hidden_site(node, code) for node, code in batchnorm.hidden_sites(facts)]
    if any(site.outcome == "folded" for site in sites):
        document.changed = editor.commit()
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


def find_sites(facts: GraphFacts, options: FoldOptions) -> list[Site]:
    """All sites of the main graph, in topological order."""
    found = list(batchnorm.sites(facts))
    if options.sources == "bn":
        return found
    chains = list(chain.sites(facts))
    if not chains:
        return found
    return sorted([*found, *chains], key=lambda site: facts.position(site.nodes[0]))


def _names(facts: GraphFacts, site: Site) -> tuple[str, ...]:
    return tuple(name for node in site.nodes for name in (facts.nodes[node].name, *facts.nodes[node].output) if name)


def _is_wanted(names: tuple[str, ...], options: FoldOptions) -> bool:
    """Whether the site's nodes or outputs match --only, if given, and do not match --exclude."""
    if not options.only and not options.exclude:
        return True
    chosen = not options.only or any(fnmatchcase(name, pattern) for name in names for pattern in options.only)
    return chosen and not any(fnmatchcase(name, pattern) for name in names for pattern in options.exclude)


def _is_listed(outcome: Outcome, options: FoldOptions) -> bool:
    """Whether a site that stays is worth a line: scalars and odd constants are only beside a convolution."""
    if outcome.kind != "chain" or outcome.plan is not None or options.sources == "all":
        return True
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
