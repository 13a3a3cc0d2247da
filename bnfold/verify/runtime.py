"""Running a model in onnxruntime, with all graph optimisations off."""

from pathlib import Path
from typing import Any, Protocol

import onnx

from bnfold.interrupts import held_back
from bnfold.nodes import ONNX_DOMAINS, nested_nodes
from bnfold.relocated import Relocated
from bnfold.verify.feeds import Feeds, InputSpec, input_spec
from bnfold.verify.providers import CUDA

Model = Path | bytes | Relocated
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

# ORT_DISABLE_ALL on both sides is what makes the comparison mean something: at the default level onnxruntime
# folds the original too, and the check would compare folded with folded.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
INSTALL = (
    "onnxruntime is not installed, and verification needs it: pip install 'bnfold[cpu]', "
    "or 'bnfold[cuda]' on a machine with an NVIDIA GPU (never both); --no-verify does without"
)


class CannotRunError(Exception):
    """The model cannot be loaded or run here. The text is for people; it is not our error to show as such."""


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

    Raises:
        CannotRunError: onnxruntime or the provider is missing, or the model does not load.
    """

    def __init__(self, model: Model, provider: str, threads: int | None) -> None:
        try:
            with held_back():  # its extension turns a Ctrl-C that comes meanwhile into an ImportError
                import onnxruntime as ort
        except ImportError:
            raise CannotRunError(INSTALL) from None
        if not hasattr(ort, "InferenceSession"):  # what uninstalling one of the two packages leaves of the other
            raise CannotRunError(INSTALL)
        if provider not in ort.get_available_providers():
            raise CannotRunError(
                f"onnxruntime {ort.__version__} has no {provider} here: it needs an NVIDIA GPU and "
                "pip install 'bnfold[cuda]'"
            )
        if provider == CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        proto = load_graph(model)
        if _kills_onnxruntime(proto):
            raise CannotRunError("empty names for absent outputs of a BatchNormalization crash it")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = (provider, _CUDA_OPTIONS) if provider == CUDA else provider
        try:
            source = str(model) if isinstance(model, Path) else model
            if isinstance(model, Relocated):
                options.add_session_config_entry(_DATA_FOLDER, str(model.folder))
                source = model.data
            # without fallback, of which onnxruntime prints the reason on stdout
            self._session = ort.InferenceSession(source, options, providers=[wanted], enable_fallback=0)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRunError(_first_line(error)) from None
        self.provider = self._session.get_providers()[0]
        self.runtime = f"onnxruntime {ort.__version__}"
        if self.provider != provider:
            raise CannotRunError(f"onnxruntime fell back from {provider} to {self.provider}")
        declared = {value.name: value for value in proto.graph.input}  # onnxruntime does not tell [] from no rank
        self.inputs = [input_spec(declared[value.name]) for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs of one run."""
        try:
            return list(self._session.run(None, feeds))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRunError(_first_line(error)) from None


def load_graph(model: Model) -> onnx.ModelProto:
    """The model, without its external data."""
    if isinstance(model, Path):
        return onnx.load(model, load_external_data=False)
    return onnx.load_model_from_string(model.data if isinstance(model, Relocated) else model)


def _kills_onnxruntime(proto: onnx.ModelProto) -> bool:
    """Onnxruntime 1.32 dies (SIGSEGV) of a BatchNormalization-7 or -9 with outputs that are listed but empty."""
    graphs = [(proto.opset_import, proto.graph.node), *((f.opset_import, f.node) for f in proto.functions)]
    for imports, nodes in graphs:
        versions = [entry.version for entry in imports if entry.domain in ONNX_DOMAINS]
        if not versions or versions[0] >= 14:
            continue
        if any(n.op_type == "BatchNormalization" and "" in n.output for n in (*nodes, *nested_nodes(nodes))):
            return True
    return False


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:400]
