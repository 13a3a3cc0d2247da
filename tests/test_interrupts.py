"""Ctrl-C and SIGTERM: never lost, never made an error of something else, and answered with the truth."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnfold
from bnfold import interrupts, staging
from bnfold.errors import WrittenInterrupt
from tests.conftest import conv_bn, ops
from tests.test_external import externalise, files_of, network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")

# Starts bnfold's main with `setup` run before. A shell's background job has SIGINT ignored: the usual handler is set.
MAIN = """
import signal, sys, os, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
{setup}
from bnfold.cli import main
main(sys.argv[1:])
"""
# A module's import during which the signal comes, and that makes an ImportError of whatever interrupts it.
ON_IMPORT = """
import builtins
real = builtins.__import__
def swallowing(name, *args, **options):
    if name == "{module}" and "{module}" not in sys.modules:
        try:
            os.kill(os.getpid(), signal.{number})
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            raise ImportError("interrupted while importing") from None
    return real(name, *args, **options)
builtins.__import__ = swallowing
"""
# The session's constructor makes an error of its own of an interrupt that comes while it runs.
ON_SESSION = """
import onnxruntime
class Session(onnxruntime.InferenceSession):
    def __init__(self, *args, **options):
        try:
            os.kill(os.getpid(), signal.{number})
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            {answer}
        super().__init__(*args, **options)
onnxruntime.InferenceSession = Session
"""


def cut_short(folder: Path, setup: str, *args: str) -> tuple[int, str, str]:
    """Run `bnfold fold net.onnx` in `folder` with that setup; returns exit code, stdout, stderr."""
    onnx.save(conv_bn(), folder / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(setup=setup), "fold", str(folder / "net.onnx"), *args],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["onnxruntime", "onnx"])
def test_an_interrupt_during_an_import_is_one(module: str, number: str, tmp_path: Path) -> None:
    """Extension modules turn it into an ImportError, "not installed" would be the verdict: it is 130, not 3 or 70."""
    found = cut_short(tmp_path, ON_IMPORT.format(module=module, number=number))
    assert found == (130, "", "bnfold: error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("answer", ["raise RuntimeError('failed')", "pass"])
def test_an_interrupt_that_something_else_swallows_still_ends_the_work(answer: str, tmp_path: Path) -> None:
    """Made an error, or dropped without a word, inside onnxruntime: 130 and nothing written all the same."""
    code, _, err = cut_short(tmp_path, ON_SESSION.format(number="SIGINT", answer=answer))
    assert (code, err) == (130, "bnfold: error: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_signal_waits_while_it_is_held_back() -> None:
    """Inside the block nothing happens; right behind it the interrupt comes, once, and the handler is back."""
    before = signal.getsignal(signal.SIGINT)
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.held_back():  # noqa: PT012 - the order is what is tested
        with interrupts.held_back():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("inner")
        steps.append("outer")
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_another_thread_gets_waits_too() -> None:
    """numpy's threads take signals that the main thread masks: a mask alone would not hold them back."""
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.held_back():  # noqa: PT012 - the order is what is tested
        thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        thread.start()
        thread.join()
        done.extend(number for number in range(1000))
    assert len(done) == 1000


def test_other_threads_and_ignored_signals_are_left_alone() -> None:
    """Handlers can be set in the main thread only; a signal that is ignored stays ignored."""
    errors: list[BaseException] = []

    def hold() -> None:
        try:
            with interrupts.held_back():
                pass
        except BaseException as error:  # noqa: BLE001 - that there is none is what is tested
            errors.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert errors == []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.held_back():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_last_moment_waits_for_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the names of data and model: both are put in their place, and the caller hears that it was written."""
    source = externalise(network(), tmp_path / "model.onnx")
    real = staging.rename_to_fresh

    def interrupted(old: Path, new: Path) -> bool:
        done = real(old, new)
        os.kill(os.getpid(), signal.SIGINT)
        return done

    monkeypatch.setattr(staging, "rename_to_fresh", interrupted)
    with pytest.raises(WrittenInterrupt):
        bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "weights.bin", *files_of(tmp_path / "out.onnx")}
    assert "BatchNormalization" not in ops(onnx.load(tmp_path / "out.onnx"))


def test_the_command_line_says_that_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    """Ctrl-C after the commit: exit 130, and the message does not say that nothing was written."""
    source = externalise(network(), tmp_path / "model.onnx")

    def interrupted(*_: Any) -> tuple[str, ...]:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "remove_unused", interrupted)
    code, _, err = cli("fold", source, "--in-place", "--no-verify")
    assert (code, err) == (130, "bnfold: error: interrupted; the model was written\n")
    assert "BatchNormalization" not in ops(onnx.load(source))
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_an_interrupt_while_the_report_is_made_is_after_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is in its place, its size is being counted: the caller hears that it was written."""
    source = externalise(network(), tmp_path / "model.onnx")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnfold.finish.Finish._say_of_files", interrupted)
    with pytest.raises(WrittenInterrupt):
        bnfold.fold(source, tmp_path / "out.onnx", verify=False)
    assert "BatchNormalization" not in ops(onnx.load(tmp_path / "out.onnx"))


def test_an_interrupt_while_leftovers_are_removed_is_after_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes while the temporary names go waits for that, and the caller hears that it was written."""
    source = externalise(network(), tmp_path / "model.onnx")
    real = staging.Staged.rollback

    def rollback(self: staging.Staged) -> None:
        real(self)
        if self.is_committed():
            raise KeyboardInterrupt

    monkeypatch.setattr(staging.Staged, "rollback", rollback)
    with pytest.raises(WrittenInterrupt):
        bnfold.fold(source, tmp_path / "out.onnx", verify=False)
