"""The fuzzer of files (tools/fuzzing): its files get past parsing, all end well, and it notices what does not."""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import bnfold
from tests.conftest import conv_bn, tensor
from tools.fuzzing import mutate, target
from tools.fuzzing.compare import extreme
from tools.fuzzing.files import one
from tools.fuzzing.minimise import minimised
from tools.fuzzing.seeds import texts
from tools.fuzzing.tally import Tally
from tools.fuzzing.target import Find, attempt, prepare

SEEDS = list(texts())
EXAMPLES = 150


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to try files in."""
    prepare(tmp_path / "fuzz")
    return tmp_path / "fuzz"


def test_changed_files_end_well_and_most_are_read(folder: Path) -> None:
    """The first examples of a seed: no find, and well over 60 % of those changed by structure pass the parser."""
    tally = Tally()
    for index in range(EXAMPLES):
        one(20, index, SEEDS, folder, tally, None)
    assert [f"{failure.index}: {failure.kind}: {failure.text}" for failure in tally.failures] == []
    assert tally.opened["structure"] > 0.8 * tally.files["structure"] > 50
    assert sum(tally.folded.values()) > EXAMPLES / 10


def test_an_example_is_the_same_every_time() -> None:
    """Seed and index decide an example, so that a find can be made again."""
    for index in range(20):
        assert mutate.example(5, index, SEEDS).data == mutate.example(5, index, SEEDS).data


@pytest.mark.parametrize("change", mutate.CHANGES, ids=lambda change: change.__name__)
def test_every_change_changes_something(change: Callable[[Random, ModelProto], None]) -> None:
    """Each of the changes finds something to work on in the golden cases and the nested graphs."""
    for seed in reversed(SEEDS):
        proto = ModelProto.FromString(seed.data)
        try:
            change(Random(seed.name), proto)
        except mutate.PLAIN:
            continue
        if proto.SerializeToString() != ModelProto.FromString(seed.data).SerializeToString():
            return
    pytest.fail("nothing was changed in any model")


def _raises(*_: Any, **__: Any) -> None:
    raise KeyError("a defect")


def _hangs(*_: Any, **__: Any) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass


def _says_less(*_: Any, **__: Any) -> Any:
    return bnfold.fold(conv_bn(), verify=False)


@pytest.mark.parametrize(("defect", "kind"), [(_raises, "KeyError"), (_hangs, "hang"), (_says_less, "inspect")])
def test_the_fuzzer_notices(
    defect: Callable[..., Any], kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that is none of ours, a loop without end, an inspect that says something else than fold."""
    monkeypatch.setattr(target, "SECONDS", 0.3)
    monkeypatch.setattr(bnfold, "inspect", defect)
    with pytest.raises(Find) as caught:
        attempt(SEEDS[0].data, folder, {"sources": "all"})
    assert caught.value.kind.startswith(kind)


def test_a_find_is_made_small() -> None:
    """What has nothing to do with the defect is taken away; the defect stays."""
    proto = conv_bn()
    proto.doc_string = "a long story"

    def fails(data: bytes) -> bool:
        return any(node.op_type == "BatchNormalization" for node in ModelProto.FromString(data).graph.node)

    small = ModelProto.FromString(minimised(proto.SerializeToString(), fails))
    assert [node.op_type for node in small.graph.node] == ["BatchNormalization"]
    assert not small.graph.initializer
    assert not small.doc_string


@pytest.mark.parametrize(("number", "expected"), [(1.0, False), (1e20, True), (1e-30, True), (np.inf, True)])
def test_extreme_numbers_are_told(number: float, expected: bool) -> None:  # noqa: FBT001 - a parameter
    """A difference between two files that hold such numbers proves nothing."""
    proto = conv_bn()
    proto.graph.initializer.append(tensor("odd", [number]))
    assert extreme(proto) is expected
