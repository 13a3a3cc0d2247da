"""Measure one process: wall time, processor time, peak memory, and whether it did its work."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
_MESSAGE_LIMIT = 90

_COUNT = """\
import sys, onnx
nodes = onnx.load(sys.argv[1], load_external_data=False).graph.node
print(len(nodes), sum(node.op_type == "BatchNormalization" for node in nodes))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One process from start to end.

    Attributes:
        wall: seconds from before it was started until it had ended.
        cpu: user and system seconds, of its children too.
        peak: the most memory it held, in bytes.
        failure: why it does not count; empty where it does.
    """

    wall: float
    cpu: float
    peak: int
    failure: str = ""


def fresh_environment(cache: Path) -> dict[str, str]:
    """The environment without Python's own switches, so that they slow no tool down.

    `cache` holds the byte code of all tools alike: the warm-up round fills it, as an installation would.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPYCACHEPREFIX": str(cache)}


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float) -> Run:
    """Run `command` in `folder`; whatever way it ends is a result."""
    os.sync()  # nobody waits for what another left to be written
    expired = threading.Event()
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(timeout, _expire, (expired, process.pid))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
            if process.returncode is None:  # Ctrl-C here does not reach a process in a session of its own
                _kill(process.pid)
                process.wait()
        failure = f"over {timeout:g} s" if expired.is_set() else _failure(process.returncode, errors)
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT, failure)


def count_nodes(model: Path) -> tuple[int, int]:
    """Nodes of the main graph, and how many of them are BatchNormalization. In a process of its own."""
    command = [sys.executable, "-c", _COUNT, str(model)]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(error.stderr.strip().splitlines()[-1]) from None
    nodes, left = told.stdout.split()
    return int(nodes), int(left)


def _expire(expired: threading.Event, process: int) -> None:
    expired.set()
    _kill(process)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _failure(code: int, errors: BinaryIO) -> str:
    if code == 0:
        return ""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"failed: {lines[-1][:_MESSAGE_LIMIT]}" if lines else f"failed: {ended}"
