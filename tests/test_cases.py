"""The golden cases in tests/cases: what goes in and what must come out, in ONNX text, one behaviour per file.

A file holds comment lines (a sentence on what is expected; `# not executed: reason` where onnxruntime has no
kernel), the model, and then

    === left: code, code ===     the codes of the sites that stay, in order
    === after ===                the folded model

Where there is no `after`, the model must come back unchanged.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

import bnfold
from tests.conftest import assert_same_outputs, random_feeds, run

CASES = Path(__file__).parent / "cases"
PATHS = sorted(CASES.glob("*.txt"))
NO_EXECUTION = "# not executed: "
NO_KERNEL = (ort_errors.Fail, ort_errors.NotImplemented)
FLOAT32_LIMIT, FLOAT16_LIMIT = 2e-6, 2.0**-10


@dataclass(frozen=True)
class Case:
    """One file, parsed. `after` is None where the model must come back unchanged."""

    before: ModelProto
    after: ModelProto | None
    left: list[str]
    executed: bool


def load(path: Path) -> Case:
    """Read a case; lines that open with `#` are for people, but for `# not executed:`."""
    lines = path.read_text().splitlines()
    executed = not any(line.startswith(NO_EXECUTION) for line in lines)
    sections: dict[str, list[str]] = {"before": []}
    left = ""
    current = "before"
    for line in (line for line in lines if not line.startswith("#")):
        if line.startswith("=== left:"):
            left, current = line.removeprefix("=== left:").removesuffix("==="), "left"
        elif line == "=== after ===":
            current = "after"
        sections.setdefault(current, [])
        if not line.startswith("==="):
            sections[current].append(line)
    assert {"left", "after"} & sections.keys(), f"{path.name} says nothing about the outcome"
    after = onnx.parser.parse_model("\n".join(sections["after"])) if "after" in sections else None
    codes = [code.strip() for code in left.split(",") if code.strip()]
    return Case(onnx.parser.parse_model("\n".join(sections["before"])), after, codes, executed)


def normal_form(model: ModelProto) -> ModelProto:
    """A copy with every tensor's numbers in raw_data, wherever they were stored."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _normalise(copy.graph)
    return copy


def _normalise(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _store_raw(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _store_raw(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                _normalise(attribute.g)


def _store_raw(tensor: TensorProto) -> None:
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
    raw.doc_string = tensor.doc_string
    tensor.CopyFrom(raw)


def assert_equal_models(found: ModelProto, expected: ModelProto) -> None:
    """Equal in every field; shown as text where they are not."""
    first, second = normal_form(found), normal_form(expected)
    if first != second:
        texts = onnx.printer.to_text(first), onnx.printer.to_text(second)
        pytest.fail(f"found\n{texts[0]}\n\nexpected\n{texts[1]}\n" + ("" if texts[0] != texts[1] else str(first)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_case_comes_out_as_written(path):
    """The folded model and the codes of the sites that stay are those of the file; the input is not changed."""
    case = load(path)
    given = case.before.SerializeToString(deterministic=True)
    result = bnfold.fold(case.before, verify=False, provenance=False)
    assert case.before.SerializeToString(deterministic=True) == given
    assert [site.code for site in result.refused] == case.left
    if case.after is None:
        assert result.model.SerializeToString(deterministic=True) == given
        assert not result.folded
    else:
        assert_equal_models(result.model, case.after)
        assert result.folded


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_folding_twice_is_folding_once(path):
    """The second fold finds nothing to do, refuses what the first refused, and changes no byte."""
    once = bnfold.fold(load(path).before, verify=False)
    twice = bnfold.fold(once.model, verify=False)
    assert not twice.folded
    assert [site.code for site in twice.refused] == [site.code for site in once.refused]
    assert twice.model.SerializeToString(deterministic=True) == once.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("path", [p for p in PATHS if load(p).after], ids=lambda path: path.stem)
def test_case_computes_the_same(path):
    """Both models pass onnx's checker and agree in onnxruntime, optimisations off, or it has no kernel for them."""
    case = load(path)
    folded = bnfold.fold(case.before, verify=False, provenance=False).model
    for model in (case.before, folded):
        onnx.checker.check_model(model, full_check=True)
    if case.executed:
        half = any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in folded.graph.output)
        assert_same_outputs(case.before, folded, FLOAT16_LIMIT if half else FLOAT32_LIMIT)
    else:
        with pytest.raises(NO_KERNEL):
            run(case.before, random_feeds(case.before))


def test_there_are_cases():
    """The folder was found: an empty parametrisation would pass silently."""
    assert len(PATHS) > 40
