"""Time limits: what runs for ever is stopped, is not verified, and says by which option; Ctrl-C ends a run."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.cli import cli
from bnfold.errors import NotVerified, UsageError
from bnfold.verification import VerifyOptions
from bnfold.verification.judge import verify_pair
from bnfold.verification.reference import ReferenceRunner
from bnfold.verification.runtime import OrtRunner, OutOfTimeError, Settings
from bnfold.verification.timed import within
from tests.conftest import batchnorm_parameters, conv_bn, model, random_feeds, tensor

FOR_EVER = 2**62
LIMIT = 0.3


def looping(turns: int = FOR_EVER) -> ModelProto:
    """A Conv and BatchNormalization, and then so many turns of a Loop."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    proto = conv_bn()
    proto.graph.node.append(helper.make_node("Loop", ["turns", "start", "y"], ["z"], body=body))
    proto.graph.initializer.extend([tensor("turns", turns, np.int64), tensor("start", 1, np.bool_)])
    proto.graph.output[0].name = "z"
    return proto


def judged(original: ModelProto, folded: ModelProto, **options: Any):
    """The verdict on two models in memory."""
    return verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions(**options))


@pytest.mark.parametrize("provider", ["cpu", "reference"])
def test_an_endless_loop_is_not_verified(provider: str) -> None:
    """onnxruntime and the stand-in are both stopped, and the reason names the option; nothing is written."""
    with pytest.raises(NotVerified, match=r"stopped after 0\.3 s.*--time-limit"):
        bnfold.fold(looping(), providers=provider, time_limit=LIMIT)


def test_a_loop_that_ends_in_time_is_verified() -> None:
    """The same network with fewer turns is equal: the limit is what stops the other one."""
    assert bnfold.fold(looping(50)).verification


def test_a_chain_of_convolutions_is_stopped_between_two_of_them() -> None:
    """No Loop is needed: hours of ordinary operators end as well, and the session can be used again."""
    nodes = [helper.make_node("Conv", [f"v{i}", "w"], [f"v{i + 1}"], pads=[1, 1, 1, 1]) for i in range(4000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    proto = model(nodes, [tensor("w", np.full((16, 16, 3, 3), 1e-3))], (1, 16, 64, 64))
    runner = OrtRunner(proto.SerializeToString(), "cpu", Settings(threads=1, time_limit=LIMIT))
    for _ in range(2):
        with pytest.raises(OutOfTimeError, match="onnxruntime was stopped"):
            runner.run(random_feeds(proto))


def test_only_the_folded_model_takes_too_long() -> None:
    """A folded model that goes on for ever is not verified, rather than different for not running."""
    found = judged(looping(2), looping(), time_limit=LIMIT)
    assert found.verdict == "not verified"
    assert "--time-limit" in found.reason


def test_a_wrong_value_outweighs_the_time() -> None:
    """A value that was found to be wrong stays so, whatever happened to the run of the folded model."""
    original, folded = looping(2), bnfold.fold(looping(), verify=False).model
    bias = next(t for t in folded.graph.initializer if t.name == "w_bias")
    bias.CopyFrom(tensor("w_bias", onnx.numpy_helper.to_array(bias) + 1))
    found = judged(original, folded, time_limit=LIMIT)
    assert found.verdict == "different"
    assert "'y'" in found.reason


def test_other_sizes_that_take_too_long_are_left_out() -> None:
    """The second size of a free dimension is extra: where only that takes too long, the first one is compared."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Equal", ["n", "first"], ["is_first"]),
        helper.make_node("Where", ["is_first", "few", "many"], ["turns"]),
    ]
    held = [tensor("w", np.ones((4, 3, 1, 1))), *batchnorm_parameters(4)]
    held += [tensor(name, [value], np.int64) for name, value in (("first", 2), ("few", 1), ("many", FOR_EVER))]
    held.append(tensor("start", 1, np.bool_))
    proto = model(nodes, held, ("N", 3, 4, 4))
    proto.graph.node.append(looping().graph.node[-1])
    proto.graph.output[0].name = "z"
    run = bnfold.fold(proto, time_limit=LIMIT).verification.runs[0]
    assert run.verdict == "equal"
    assert [fed.shapes["x"][0] for fed in run.inputs] == [2, 2, 2]


def test_the_reference_is_stopped_inside_functions_and_empty_bodies() -> None:
    """A turn without any operator, in a Loop that a local function holds, is stopped too."""
    proto = looping()
    loop = proto.graph.node.pop()
    body = loop.attribute[0].g
    del body.node[:]
    body.output[0].name, body.output[1].name = "go", "value"
    function = helper.make_function(
        "local", "ever", ["turns", "start", "y"], ["z"], [loop], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(helper.make_node("ever", ["turns", "start", "y"], ["z"], domain="local"))
    with pytest.raises(OutOfTimeError, match="reference evaluator was stopped"):
        ReferenceRunner(proto.SerializeToString(), LIMIT).run(random_feeds(proto))


def test_what_does_not_stop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single operator may go on and on, deaf to the flag: the caller gets its answer all the same."""
    monkeypatch.setattr("bnfold.verification.timed._GRACE", 0.1)
    end, asked = threading.Event(), []
    with pytest.raises(TimeoutError):
        within(0.1, end.wait, lambda: asked.append("stop"))
    end.set()
    assert asked == ["stop"]


def test_outcomes_come_through() -> None:
    """What is returned, raised, or ends on being asked is what the caller gets."""
    assert within(60, lambda: 7, lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0, lambda: None)


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_limit_is_some_time(limit: str, tmp_path: Path) -> None:
    """No time, or no number, is a usage error before any work, on the command line and in Python."""
    onnx.save(conv_bn(), tmp_path / "net.onnx")
    assert CliRunner().invoke(cli, ["fold", str(tmp_path / "net.onnx"), "--time-limit", limit]).exit_code != 0
    with pytest.raises(UsageError, match="time limit"):
        VerifyOptions(time_limit=float(limit))


def test_check_and_the_command_line_take_the_limit(tmp_path: Path) -> None:
    """`bnfold check` says not verified (3) for a model without end, and goes on to the next one."""
    onnx.save(looping(), tmp_path / "a.onnx")
    onnx.save(bnfold.fold(conv_bn()).model, tmp_path / "b.onnx")
    command = [sys.executable, "-m", "bnfold", "check", "--allow-foldable", "--time-limit", "0.3", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "--time-limit" in done.stdout
    found = bnfold.check(tmp_path, allow_foldable=True, time_limit=LIMIT)
    assert [entry.outcome for entry in found.models] == ["not verified", "passed"]


# Starts bnfold's main, and sends the signal once the first run of the session has begun.
INTERRUPTED = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
import onnxruntime
class Session(onnxruntime.InferenceSession):
    def run(self, *args):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.{number})).start()
        return super().run(*args)
onnxruntime.InferenceSession = Session
from bnfold.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run(number: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle of an endless run of onnxruntime: 130, and nothing was written."""
    onnx.save(looping(), tmp_path / "net.onnx")
    script = INTERRUPTED.format(number=number)
    command = [sys.executable, "-c", script, "fold", str(tmp_path / "net.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "bnfold: error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
