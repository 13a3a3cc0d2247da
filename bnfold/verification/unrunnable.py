"""Models that onnxruntime loads, or would, and cannot run: told beforehand, so that something else can stand in."""

import re
from typing import Any

from onnx import ModelProto

from bnfold.nodes import ONNX_DOMAINS, nested_nodes
from bnfold.text import printable

# Types of onnxruntime that numpy lacks; its Python API neither takes nor gives arrays of them (1.22 to 1.32).
_NOT_IN_NUMPY = re.compile(r"bfloat16|float[48]\w*|u?int[24]\b")


def crash(model: ModelProto) -> str:
    """Why loading the model would end the process; empty where it would not.

    onnxruntime 1.32 dies (SIGSEGV) of a BatchNormalization-7 or -9 with outputs that are listed but empty.
    """
    graphs = [(model.opset_import, model.graph.node), *((f.opset_import, f.node) for f in model.functions)]
    for imports, nodes in graphs:
        versions = [entry.version for entry in imports if entry.domain in ONNX_DOMAINS]
        if not versions or versions[0] >= 14:
            continue
        if any(n.op_type == "BatchNormalization" and "" in n.output for n in (*nodes, *nested_nodes(nodes))):
            return "empty names for absent outputs of a BatchNormalization crash it"
    return ""


def unknown_type(session: Any) -> str:
    """Why no numbers can be given to an onnxruntime session, or taken from it; empty where they can."""
    for what, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            strange = _NOT_IN_NUMPY.search(value.type)
            if strange:
                return f"its Python API has no {strange[0]}, the type of {what} '{printable(value.name)}'"
    return ""
