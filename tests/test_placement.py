"""Where products ran: read from onnxruntime's own profile, on the CPU here; what fell back is named."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import NotVerified
from bnfold.verification import judge, placement
from bnfold.verification.placement import Ran, elsewhere, placement_problem, profile, read_profile
from bnfold.verification.providers import CPU, CUDA, Provider
from bnfold.verification.runtime import CannotRunError, Settings
from tests.conftest import MODELS, conv_bn, model, random_feeds, tensor
from tests.test_external import externalise
from tests.test_time_limit import looping

ON_CPU = Provider(CPU)
SETTINGS = Settings(threads=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def products() -> ModelProto:
    """A Conv with a name, a MatMul and a Gemm without, one Conv in a branch, and a MatMul of whole numbers."""
    rng = np.random.default_rng(0)
    branch = [
        helper.make_graph(
            [helper.make_node("Conv", ["c", "deep"], [f"{side}_out"])], side, [],
            [helper.make_tensor_value_info(f"{side}_out", TensorProto.FLOAT, None)],
        )
        for side in ("then", "else")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("If", ["yes"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Flatten", ["i"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["p"]),
        helper.make_node("MatMul", ["whole", "whole"], ["square"], name="of whole numbers"),
        helper.make_node("ReduceMax", ["square"], ["shape"], axes=[1], keepdims=0),
        helper.make_node("Reshape", ["p", "shape"], ["r"]),
        helper.make_node("Gemm", ["r", "m"], ["y"]),
    ]
    held = [
        tensor("w", rng.normal(size=(4, 3, 1, 1))), tensor("deep", rng.normal(size=(1, 4, 1, 1))),
        tensor("m", rng.normal(size=(4, 4))), tensor("whole", np.diag([1, 2]), np.int64), tensor("yes", 1, np.bool_),
    ]  # fmt: skip
    return model(nodes, held, (1, 3, 2, 2))


def test_the_profile_of_a_real_session_says_what_ran_where(folder: Path) -> None:
    """Every float product of a run on the CPU, nested and unnamed ones too, and nothing stays on the disk."""
    proto = products()
    ran = profile(proto.SerializeToString(), ON_CPU, SETTINGS, random_feeds(proto))
    found = [(r.node, r.provider) for r in ran if r.is_product]
    assert found == [(node, CPU) for node in ("Conv 'first'", "Conv -> 'then_out'", "MatMul -> 'p'", "Gemm -> 'y'")]
    whole = next(r for r in ran if r.node == "MatMul 'of whole numbers'")
    assert (whole.kind, whole.is_product) == ("int64", False)
    assert list(folder.iterdir()) == []


def test_what_ran_elsewhere_is_named(folder: Path) -> None:
    """The same run is in order for the CPU and a fall-back for CUDA: the first node, its model, and how many more."""
    proto = products()
    ran = profile(proto.SerializeToString(), ON_CPU, SETTINGS, random_feeds(proto))
    assert elsewhere(ran, CPU) == []
    assert [r.node for r in elsewhere([*ran, *ran], CUDA)][:2] == ["Conv 'first'", "Conv -> 'then_out'"]
    assert len(elsewhere([*ran, *ran], CUDA)) == 4
    memcpy = [Ran("m", "MemcpyToHost", CPU), Ran("s", "Shape", CPU, "float"), Ran("c", "Conv", CUDA, "float")]
    assert elsewhere(memcpy, CUDA) == []


def test_products_in_local_functions_and_loops_count(folder: Path) -> None:
    """onnxruntime inlines functions under names of its own; each node counts once however often it ran."""
    proto = looping(3)
    conv = proto.graph.node[0]
    function = helper.make_function("local", "f", ["x", "w"], ["c"], [conv], [helper.make_opsetid("", 17)])
    call = helper.make_node("f", ["x", "w"], ["c"], domain="local")
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    conv.CopyFrom(call)
    ran = profile(proto.SerializeToString(), ON_CPU, SETTINGS, random_feeds(proto))
    assert [r.op for r in elsewhere(ran, CUDA)] == ["Conv"]
    assert "conv" in elsewhere(ran, CUDA)[0].node


def test_files_with_external_data_are_profiled_where_they_are(folder: Path, tmp_path: Path) -> None:
    """The throwaway copy, in which all nodes have names, still finds its data."""
    path = externalise(conv_bn(), tmp_path / "model.onnx")
    ran = profile(path, ON_CPU, SETTINGS, random_feeds(conv_bn()))
    assert [r.op for r in ran if r.is_product] == ["Conv"]


def test_a_model_of_models_is_placed(folder: Path) -> None:
    """A real model on the CPU: every product it has is in the profile."""
    path = MODELS / "digits_resnet.onnx"
    proto = onnx.load(path)
    ran = profile(path, ON_CPU, SETTINGS, random_feeds(proto))
    wanted = sorted(node.name for node in proto.graph.node if node.op_type in placement.PRODUCTS)
    assert sorted(r.node.split("'")[1] for r in ran if r.is_product) == wanted
    assert placement_problem([("it", path)], ON_CPU, SETTINGS, random_feeds(proto)) == ""


@pytest.mark.parametrize("fault", ["run", "interrupt"])
def test_nothing_stays_on_the_disk_when_it_fails(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails, or a Ctrl-C in the middle of it: the temporary folder is gone."""
    proto = conv_bn()
    feeds: dict[str, Any] = random_feeds(proto)
    if fault == "run":
        with pytest.raises(CannotRunError):
            profile(proto.SerializeToString(), ON_CPU, SETTINGS, {"x": feeds["x"][:, :1]})
    else:
        monkeypatch.setattr("bnfold.verification.runtime.run_session", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            profile(proto.SerializeToString(), ON_CPU, SETTINGS, feeds)
    assert list(folder.iterdir()) == []


def _interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_profile_that_is_none_is_an_error() -> None:
    """Half a file, another kind of file, events without what is needed: said, never taken for "all in place"."""
    for data in (b"", b"[{", b"7", b'[{"cat": "Node", "args": {"provider": "x"}}]', b'["Node"]'):
        with pytest.raises(ValueError, match="profile cannot be read"):
            read_profile(data)


def test_a_fall_back_is_not_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal outputs of a Conv that ran elsewhere prove nothing: exit 3, with the node; a difference stays one."""
    monkeypatch.setattr(judge, "CUDA", CPU)  # the check, which is made on CUDA alone
    assert bnfold.fold(conv_bn()).verification
    real = placement.read_profile

    def fallen(data: bytes) -> list[Ran]:
        return [Ran(r.node, r.op, "AnotherExecutionProvider", r.kind) for r in real(data)]

    monkeypatch.setattr(placement, "read_profile", fallen)
    with pytest.raises(
        NotVerified, match="Conv 'conv' of the original ran on AnotherExecutionProvider instead of CPU"
    ):
        bnfold.fold(conv_bn())
    monkeypatch.setattr(placement, "read_profile", lambda _data: [])
    with pytest.raises(NotVerified, match=r"cannot be told where the original ran: .* lists no product"):
        bnfold.fold(conv_bn())
