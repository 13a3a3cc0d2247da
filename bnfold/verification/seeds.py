"""Seeds for random operators, so that two models draw the same numbers.

Without one, onnxruntime seeds an operator by its place in the graph, which a fold shifts. Here each gets a seed by
the name of its output, which a fold keeps, in a copy that is run and thrown away; a seed that is there already stays.
"""

from binascii import crc32
from collections.abc import Iterable

from onnx import ModelProto, NodeProto, helper

from bnfold.nodes import ONNX_DOMAINS, nested_nodes

RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_TRAINING = 2  # the input of Dropout that turns it on, from opset 12 on; before, there is no attribute for a seed
_LARGEST_SEED = 2**20  # whole numbers up to here are exact in float32, the type of most operators' seeds


def pin(model: ModelProto) -> bool:
    """Give every random operator of `model`, which is changed, a seed; False where there is none."""
    found = False
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in (*nodes, *nested_nodes(nodes)):
            if _is_random(node):
                _pin(node)
                found = True
    return found


def _is_random(node: NodeProto) -> bool:
    if node.domain not in ONNX_DOMAINS:
        return False
    if node.op_type == "Dropout":
        return len(node.input) > _TRAINING and bool(node.input[_TRAINING])
    return node.op_type in RANDOM


def _pin(node: NodeProto) -> None:
    if any(entry.name == "seed" for entry in node.attribute):
        return
    seed = crc32(_name(node.output).encode()) % _LARGEST_SEED
    node.attribute.append(helper.make_attribute("seed", seed if node.op_type == "Dropout" else float(seed)))


def _name(names: Iterable[str]) -> str:
    """The first of some names that is there."""
    return next(filter(None, names), "")
