"""Running a model in onnxruntime, with all graph optimisations off.

Random operators get seeds that do not depend on their place in the graph (`seeds`). onnxruntime goes on in each
operator's sequence of random numbers from run to run of a session, so models that have some get a new session for
each run: the same inputs give the same outputs.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx

from bnfold.errors import UsageError
from bnfold.interrupts import held_back
from bnfold.relocated import Relocated
from bnfold.text import printable
from bnfold.verification.devices import device_name
from bnfold.verification.feeds import Feeds, InputSpec, input_spec
from bnfold.verification.providers import CUDA, Provider, parse_provider
from bnfold.verification.seeds import pin
from bnfold.verification.timed import DEFAULT_LIMIT, run_session
from bnfold.verification.unrunnable import crash, unknown_type

Model = Path | bytes | Relocated
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

# ORT_DISABLE_ALL on both sides is what makes the comparison mean something: at the default level onnxruntime
# folds the original too, and the check would compare folded with folded.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "DEFAULT"}
INSTALL = (
    "onnxruntime is not installed, and verification needs it: pip install 'bnfold[cpu]', "
    "or 'bnfold[cuda]' on a machine with an NVIDIA GPU (never both); --no-verify does without"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How sessions are made.

    Attributes:
        threads: of one operator; None leaves it to onnxruntime.
        libraries: shared libraries of custom operators.
        tf32: let CUDA multiply in TF32.
        optimised: at onnxruntime's default level of optimisation, instead of none.
        time_limit: seconds that one run may take.
        profile: how the name of the file begins that the first run's profile goes to; "" for none.
    """

    threads: int | None = None
    libraries: tuple[Path, ...] = ()
    tf32: bool = False
    optimised: bool = False
    time_limit: float = DEFAULT_LIMIT
    profile: str = ""


DEFAULT = Settings()


class CannotRunError(Exception):
    """The model cannot be loaded or run here. The text is for people; it is not our error to show as such."""


class NotInstalledError(CannotRunError):
    """The runtime or the provider is missing here."""


class OutOfTimeError(CannotRunError):
    """A run was stopped at its time limit."""

    def __init__(self, limit: float, runtime: str) -> None:
        super().__init__(
            f"{runtime} was stopped after {limit:g} s, the limit of one run (more with --time-limit or time_limit; "
            "--shape and --dim make inputs smaller)"
        )


class Runner(Protocol):
    """Something that runs one model."""

    provider: str
    runtime: str
    inputs: list[InputSpec]
    outputs: list[str]

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs, in the model's order. Raises CannotRunError."""


class OrtRunner:
    """One onnxruntime session.

    Attributes:
        options: of the provider, those that were set.
        device: the name of what it runs on.

    Raises:
        CannotRunError: onnxruntime or the provider is missing, or the model does not load.
        UsageError: a library of custom operators does not load.
    """

    def __init__(self, model: Model, provider: Provider | str, settings: Settings = DEFAULT) -> None:
        provider = parse_provider(provider) if isinstance(provider, str) else provider
        ort = _onnxruntime_with(provider)
        proto = skim(model)
        problem = crash(proto)
        if problem:
            raise CannotRunError(problem)
        self.options = dict(provider.options)
        if provider.name == CUDA:
            self.options = {**_CUDA_OPTIONS, "use_tf32": str(int(settings.tf32)), **self.options}
        is_random = pin(proto)
        make = _maker(_pinned(model) if is_random else model, (provider.name, self.options), _options(settings))
        try:
            self._session = make()
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRunError(_first_line(error)) from None
        strange = unknown_type(self._session)
        if strange:
            raise CannotRunError(strange)
        self._make = make if is_random else None
        self._is_used = False
        self._limit = settings.time_limit
        self.provider = self._session.get_providers()[0]
        self.runtime = f"onnxruntime {ort.__version__}"
        if self.provider != provider.name:
            raise CannotRunError(f"onnxruntime fell back from {provider.name} to {self.provider}")
        number = self.options.get("device_id", "0")
        self.device = device_name(self.provider, int(number) if number.isdecimal() else 0)
        declared = {value.name: value for value in proto.graph.input}  # onnxruntime does not tell [] from no rank
        self.inputs = [input_spec(declared[value.name]) for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs of one run."""
        try:
            if self._make is not None and self._is_used:
                self._session = self._make()
            self._is_used = True
            return run_session(self._session, feeds, self._limit)
        except TimeoutError:
            raise OutOfTimeError(self._limit, "onnxruntime") from None
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRunError(_first_line(error)) from None

    def end_profile(self) -> Path:
        """The file with the profile that `Settings.profile` asked for; it is complete now."""
        return Path(self._session.end_profiling())


def _onnxruntime_with(provider: Provider) -> Any:
    """The module onnxruntime, ready to run on a provider.

    Raises:
        NotInstalledError: it or the provider is missing.
    """
    try:
        with held_back():  # its extension turns a Ctrl-C that comes meanwhile into an ImportError
            import onnxruntime as ort
    except ImportError:
        raise NotInstalledError(INSTALL) from None
    if not hasattr(ort, "InferenceSession"):  # what uninstalling one of the two packages leaves of the other
        raise NotInstalledError(INSTALL)
    if provider.name not in ort.get_available_providers():
        raise NotInstalledError(
            f"onnxruntime {ort.__version__} has no {provider.name} here: it needs an NVIDIA GPU and "
            "pip install 'bnfold[cuda]'"
        )
    if provider.name == CUDA and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # where it tells what it did not find; the session will say
            ort.preload_dlls()
    return ort


def _maker(model: Model, wanted: tuple[str, dict[str, str]], options: Any) -> Callable[[], Any]:
    """A function that makes a session."""
    import onnxruntime as ort

    source = str(model) if isinstance(model, Path) else model
    if isinstance(model, Relocated):
        options.add_session_config_entry(_DATA_FOLDER, str(model.folder))
        source = model.data
    # without fallback, of which onnxruntime prints the reason on stdout
    return lambda: ort.InferenceSession(source, options, providers=[wanted], enable_fallback=0)


def _options(settings: Settings) -> Any:
    """What both models run with.

    Raises:
        UsageError: a library of custom operators does not load.
    """
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    if not settings.optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    if settings.profile:
        options.enable_profiling, options.profile_file_prefix = True, settings.profile
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    for library in settings.libraries:
        try:
            options.register_custom_ops_library(str(library.resolve()))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            shown = printable(str(library))
            raise UsageError(
                f"--custom-op-library {shown}: it does not load into onnxruntime {ort.__version__}: "
                f"{_first_line(error)}"
            ) from None
    return options


def in_memory(proto: onnx.ModelProto, model: Model) -> bytes | Relocated:
    """A throwaway copy of `model` that was changed to `proto`, with its external data where it is."""
    data = proto.SerializeToString()
    if isinstance(model, bytes):
        return data
    return Relocated(data, model.parent if isinstance(model, Path) else model.folder)


def _pinned(model: Model) -> bytes | Relocated:
    """A throwaway copy whose random operators have seeds."""
    proto = load_graph(model)
    pin(proto)
    return in_memory(proto, model)


def skim(model: Model) -> onnx.ModelProto:
    """The model without its external data, and without large numbers where that is quicker."""
    if isinstance(model, Relocated) and model.skeleton:
        return onnx.load_model_from_string(model.skeleton)
    return load_graph(model)


def load_graph(model: Model) -> onnx.ModelProto:
    """The model, without its external data."""
    if isinstance(model, Path):
        return onnx.load(model, load_external_data=False)
    return onnx.load_model_from_string(model.data if isinstance(model, Relocated) else model)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:400]
