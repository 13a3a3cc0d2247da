"""What a killed fold left: which model is there, and what must not be."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import onnx

from tools.killing.scene import Files, Scene

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.bnfold-tmp[.\w]*")
DATA = re.compile(r".+\.data|weights\.bin")


def problems(scene: Scene, number: int, code: int, err: str, after: Files) -> Iterator[str]:
    """What must not be, one sentence each."""
    temporary = {name for name in after if TEMPORARY.fullmatch(name)}
    rest = {name: content for name, content in after.items() if name not in temporary}
    name = state(scene, rest)
    if name == "broken":
        yield f"the folder holds {sorted(rest)}, which is neither the old nor the new model"
    if number == signal.SIGKILL:
        if code not in (0, -signal.SIGKILL):
            yield f"exit code {code}"
        return
    if temporary or name not in ("old", "new"):
        yield f"left behind: {sorted(after)} ({name})"
    expected = {130: ("old", "new"), 0: ("new",), -number: ("old",)}
    if name not in expected.get(code, ()) and not (name == "old" and _is_too_early(code, err)):
        yield f"exit code {code} with the {name} model: {err.strip()[-300:]}"
    if code == 130 and ("nothing was written" in err) != (name == "old"):
        yield f"it says {err!r} with the {name} model"


def _is_too_early(code: int, err: str) -> bool:
    """Whether Python itself was still starting, which makes a traceback and exit code 1 of Ctrl-C."""
    return code == 1 and "KeyboardInterrupt" in err and "bnfold: error" not in err


def state(scene: Scene, rest: Files) -> str:
    """Which model is there, by its bytes; data that no model needs is named beside it."""
    new_data = {name: data for name, data in scene.done.items() if name not in scene.before and DATA.fullmatch(name)}
    old_data = {name: data for name, data in scene.before.items() if name not in scene.done and DATA.fullmatch(name)}
    states = {
        "old": scene.before, "new": scene.done, "old, and the new data": scene.before | new_data,
        "new, and the old data": scene.done | old_data,
    }  # fmt: skip
    return next((name for name, files in states.items() if rest == files), "broken")


def load_problem(path: Path) -> str:
    """Why a model does not load with its data, or is no valid model; "" where it does and is."""
    try:
        onnx.load(path)
        onnx.checker.check_model(path)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model is not whole
        return f"{path.name} does not load: {error}"
    return ""


def kind_of_end(code: int, err: str) -> str:
    """How a run ended, in words."""
    if code == 0:
        return "done before the signal"
    if code == 130:
        return "130, nothing was written" if "nothing was written" in err else "130, the model was written"
    return "SIGKILL" if code == -signal.SIGKILL else "ended by the signal before bnfold's own code ran"
