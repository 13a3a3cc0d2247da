"""Original and folded file in onnxruntime, in a process of its own: a runtime may crash or hang on odd models."""

import contextlib
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from tools.fuzzing.tree import messages

SECONDS = 20
GIGABYTES = 4
LARGEST = 1e15  # of a number that is not extreme; its inverse is the smallest


class Judge:
    """Compares pairs of files; starts its process when it is first needed, and again when it is lost."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def compare(self, original: Path, folded: Path) -> tuple[str, str]:
        """The verdict of `bnfold.verify`; "invalid": only the folded file fails onnx's checker; or "lost"."""
        return self._ask(original, folded)

    def valid(self, model: Path) -> bool:
        """Whether onnx's checker or onnxruntime takes the model; what it means is not defined otherwise."""
        return self._ask(model, None)[0] == "valid"

    def _ask(self, *question: Path | None) -> tuple[str, str]:
        if self._process is None:
            self._start()
        self._pipe.send(question)
        with contextlib.suppress(EOFError, OSError):
            if self._pipe.poll(SECONDS):
                verdict: tuple[str, str] = self._pipe.recv()
                return verdict
        self.close()
        return "lost", "the runtime crashed, hung, or took too much memory"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Connection) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_judge(*pipe.recv()))


def _judge(original: Path, folded: Path | None) -> tuple[str, str]:
    from bnfold.errors import BnfoldError
    from bnfold.verification import VerifyOptions
    from bnfold.verification.judge import verify_pair

    valid = _valid(original)
    if folded is None:
        return ("valid" if valid else "unusable"), ""
    if (problem := _worse(original, folded)) is not None:
        return "invalid", problem
    try:
        verification = verify_pair(original, folded, VerifyOptions(threads=1, trials=1))
    except BnfoldError as error:
        return "not verified", f"{type(error).__name__}: {error}"[-300:]
    except MemoryError:
        return "not verified", "out of memory"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return "crash", f"verify: {type(error).__name__}: {error}"[:300]
    verdict: str = verification.verdict
    if verdict == "different" and not valid:
        verdict = "different, of no valid model"
    elif verdict == "different" and extreme(ModelProto.FromString(original.read_bytes())):
        verdict = "different, of extreme numbers"
    return verdict, verification.reason[-300:]


def extreme(model: ModelProto) -> bool:
    """Whether a number of the model is so large or small that one more rounding overflows, or leaves nothing."""
    numbers: list[float] = []
    for message in messages(model):
        if isinstance(message, TensorProto):
            with contextlib.suppress(Exception):  # a tensor that does not fit its shape, or lies elsewhere
                numbers += np.ravel(numpy_helper.to_array(message).astype(np.float64)).tolist()
        elif isinstance(message, AttributeProto):
            numbers += [message.f, *message.floats]
    size = np.abs(np.array(numbers))
    return bool((~np.isfinite(size) | (size > LARGEST) | ((size > 0) & (size < 1 / LARGEST))).any())


def _valid(path: Path) -> bool:
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception:  # noqa: BLE001 - whatever the checker raises
        try:
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base class
            return False
    return True


def _worse(original: Path, folded: Path) -> str | None:
    """What onnx's checker has against the folded file alone."""
    import onnx

    try:
        onnx.checker.check_model(str(original))
    except Exception:  # noqa: BLE001 - whatever the checker raises
        return None
    try:
        onnx.checker.check_model(str(folded))
    except Exception as error:  # noqa: BLE001 - whatever the checker raises
        return str(error).strip()[:300]
    return None
