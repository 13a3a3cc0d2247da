"""From a torch network in inference mode to a checked .onnx file that still has its BatchNormalization nodes.

By default torch folds BatchNorm while it exports. The legacy exporter leaves it with `TrainingMode.PRESERVE`
on a network in inference mode; the dynamo exporter with `optimize=False`.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from networks.statistics import batch_norms

TOLERANCE = 1e-4
DROPPED = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.class_hierarchy", "namespace")


def legacy(
    model: nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    opset: int = 17,
    input_name: str = "pixel_values",
    dynamic_batch: bool = True,
    initializers_as_inputs: bool = False,
    training: torch.onnx.TrainingMode = torch.onnx.TrainingMode.PRESERVE,
    fold_constants: bool = True,
) -> None:
    """Write `model` by the TorchScript-based exporter and verify the file."""
    batch = {input_name: {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated and says so, several times
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            training=training,
            do_constant_folding=fold_constants,
            opset_version=opset,
            input_names=[input_name],
            output_names=["logits"],
            dynamic_axes=batch,
            keep_initializers_as_inputs=initializers_as_inputs,
        )
    verify(model, example, path)


def dynamo(
    model: nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    input_name: str = "pixel_values",
    optimize: bool = False,
    dropped: Sequence[str] = DROPPED,
) -> None:
    """Write `model` by the torch.export-based exporter, free of this machine's paths, and verify the file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            optimize=optimize,
            verbose=False,
            external_data=False,
            input_names=[input_name],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    proto = onnx.load(path)
    strip_metadata(proto, dropped)
    onnx.save(proto, path)
    verify(model, example, path)


def strip_metadata(proto: onnx.ModelProto, dropped: Sequence[str] = DROPPED) -> None:
    """Drop the stack traces, which name folders of this machine, and the lists of module classes.

    The latter say the same for every node below a module and would be half of the file; the fx node and the
    scope of every node stay.
    """
    for node in proto.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key not in dropped]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def verify(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Raise unless the file kept every BatchNorm and computes what torch computes."""
    graph = onnx.load(path, load_external_data=False).graph
    found = sum(node.op_type == "BatchNormalization" for node in graph.node)
    expected = len(batch_norms(model))
    if found != expected:
        raise RuntimeError(f"{path.name}: {found} BatchNormalization nodes for {expected} BatchNorm modules")
    with torch.no_grad():
        outputs = model(example)
    wanted = outputs[0] if isinstance(outputs, tuple) else outputs
    verify_file(path, example.numpy(), wanted.numpy())


def verify_file(path: Path, feed: NDArray[Any], wanted: NDArray[np.float32]) -> None:
    """Raise unless the file is valid, names no folder of this machine, and gives `wanted` for `feed`."""
    onnx.checker.check_model(str(path), full_check=True)
    _refuse_paths(path)
    got = run(path, feed)
    if not np.isfinite(got).all():
        raise RuntimeError(f"{path.name}: the outputs are not finite")
    worst = float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    if worst > TOLERANCE:
        raise RuntimeError(f"{path.name}: differs from the network by {worst:.2e}")


def run(path: Path, feed: NDArray[Any]) -> NDArray[np.float32]:
    """The first output of the file for `feed`, by onnxruntime on the CPU without graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs: Sequence[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: feed})
    return outputs[0]


def _refuse_paths(path: Path) -> None:
    """Raise if a folder of this machine is named anywhere in the file."""
    data = path.read_bytes()
    for folder in (sys.prefix, sys.base_prefix + "/lib", str(Path.cwd()), str(Path(__file__).parent)):
        if folder.encode() in data:
            raise RuntimeError(f"{path.name}: the file names a folder of this machine")
