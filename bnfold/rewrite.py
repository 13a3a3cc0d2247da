"""Find, plan and apply on one document; the report says what happened to each site."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from onnx import NodeProto

import bnfold
from bnfold.document import Document
from bnfold.edits import Editor
from bnfold.find import batchnorm
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.plan import plan_site
from bnfold.refusals import Code, Refusal
from bnfold.report import ModelFacts, Report, SiteReport
from bnfold.text import printable

Progress = Callable[[str, int, int], None]


def rewrite(
    document: Document,
    *,
    freeze_inputs: bool,
    command: Literal["fold", "inspect"],
    progress: Progress | None = None,
) -> Report:
    """Find, plan and apply on the document's proto; the report says what happened to each site."""
    facts = GraphFacts(document.proto, document.folder, freeze_inputs=freeze_inputs, lifted=document.lifted)
    before = _model_facts(document, document.path)
    editor = Editor(facts)
    found = list(batchnorm.sites(facts))
    sites: list[SiteReport] = []
    for done, index in enumerate(found):
        if progress is not None and done % 16 == 0:
            progress("fold", done, len(found))
        sites.append(_fold_site(facts, editor, index))
    sites += [_hidden_site(node, code) for node, code in batchnorm.hidden_sites(facts)]
    if any(site.outcome == "folded" for site in sites):
        editor.commit()
        document.changed = editor.changed
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


def _fold_site(facts: GraphFacts, editor: Editor, index: int) -> SiteReport:
    node = facts.nodes[index]
    source = facts.producer(node.input[0]) if node.input else None
    name, output = label(node), printable(node.output[0]) if node.output else ""
    producer = None if source is None else label(facts.nodes[source])
    answer = plan_site(facts, index)
    if isinstance(answer, Refusal):
        return _left(name, output, producer, answer)
    editor.apply(answer)
    return SiteReport(name, output, producer, "folded", into=answer.absorber, notes=answer.notes)


def _hidden_site(node: NodeProto, code: Code) -> SiteReport:
    return _left(label(node), printable(next(iter(node.output), "")), None, Refusal(code, code.explanation))


def _left(name: str, output: str, producer: str | None, refusal: Refusal) -> SiteReport:
    code = refusal.code
    return SiteReport(name, output, producer, "left", code=code.value, message=refusal.message, help=code.help)


def _model_facts(document: Document, path: Path | None) -> ModelFacts:
    graph = document.proto.graph
    operators = Counter(node.op_type if not node.domain else f"{node.domain}::{node.op_type}" for node in graph.node)
    return ModelFacts(len(graph.node), dict(operators), len(graph.initializer), _bytes_on_disk(path, document))


def _bytes_on_disk(path: Path | None, document: Document) -> int:
    if path is None:
        return 0
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in document.data_files)))
