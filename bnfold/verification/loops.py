"""Loops without a condition, for onnx's reference evaluator.

    z = Loop (turns, , x)        ->        start = Constant (true)    z = Loop (turns, start, x)

An absent condition is true (ONNX operator spec, Loop-1 on). The evaluator takes it for false and makes no turn,
so that nothing in the body would be compared. Only copies that are run and thrown away are changed.
"""

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnfold.nodes import ONNX_DOMAINS, nested_nodes

_START = "bnfold_loop_starts"


def start_loops(model: ModelProto) -> None:
    """Give every Loop of `model`, which is changed, a condition."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        open_loops = [node for node in (*nodes, *nested_nodes(nodes)) if _has_no_condition(node)]
        if not open_loops:
            continue
        for node in open_loops:
            names = list(node.input) or [""]
            del node.input[:]
            node.input.extend([names[0], _START, *names[2:]])
        true = numpy_helper.from_array(np.array(1, np.bool_))
        nodes.insert(0, helper.make_node("Constant", [], [_START], value=true))


def _has_no_condition(node: NodeProto) -> bool:
    return node.op_type == "Loop" and node.domain in ONNX_DOMAINS and not any(node.input[1:2])
