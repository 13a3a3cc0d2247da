"""BatchNormalization in inference form for the reference evaluator, by the formula of the operator's spec.

    y = gamma * (x - mean) / sqrt(var + epsilon) + beta

Parameters are (C,), or (C, *locations) below opset 9 with `spatial` = 0; x is (N, C, *locations).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto
from onnx.reference.op_run import OpRun

DOMAIN = "bnfold.verification"


class InferenceBatchNormalization(OpRun):
    """The operator that `substitute` puts in."""

    op_domain = DOMAIN

    def _run(self, x: Any, *parameters: Any, epsilon: float | None = None) -> tuple[Any]:
        locations = (1,) * (x.ndim - 1 - parameters[0].ndim)
        gamma, beta, mean, var = (np.asarray(p).reshape(*p.shape, *locations) for p in parameters)
        eps = float(np.float32(1e-5)) if epsilon is None else epsilon
        return ((gamma * (x - mean) / np.sqrt(var + eps) + beta).astype(x.dtype),)


def substitute(model: ModelProto) -> None:
    """Replace every BatchNormalization of the main graph that is in inference form."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    found = _substitute(model.graph.node, versions[0] if versions else 1)
    if found:
        model.opset_import.add(domain=DOMAIN, version=1)


def _substitute(nodes: Iterable[NodeProto], opset: int) -> int:
    found = 0
    for node in nodes:
        if node.op_type != "BatchNormalization" or node.domain or not _is_inference(node, opset):
            continue
        found += 1
        epsilon = [entry for entry in node.attribute if entry.name == "epsilon"]
        node.domain, node.op_type = DOMAIN, "InferenceBatchNormalization"
        del node.attribute[:], node.output[1:]
        node.attribute.extend(epsilon)
    return found


def _is_inference(node: NodeProto, opset: int) -> bool:
    flags = {entry.name: entry.i for entry in node.attribute}
    if any(node.output[1:]) or flags.get("training_mode", 0):
        return False
    return opset >= 7 or bool(flags.get("is_test", 0))
