"""Models without local functions: each call replaced by the function's nodes, on a throwaway copy.

Folds may lie inside functions; inlined, their values have names that two models share as any others.
"""

from collections.abc import Iterable

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, inliner

from bnfold.nodes import nested_nodes, standard_domain

Key = tuple[str, str, str]


def inlined(model: ModelProto) -> ModelProto:
    """The model without its functions, or itself where it has none or they cannot be inlined."""
    if not model.functions:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    _fill_defaults(copy)
    try:
        return inliner.inline_local_functions(copy)
    except Exception:  # noqa: BLE001 - too large, recursive, or what else the inliner does not do
        return model


def _fill_defaults(model: ModelProto) -> None:
    """Give each call the default attributes of its function, which onnx's inliner leaves out."""
    defaults = {_key(function): function.attribute_proto for function in model.functions}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for nodes in bodies for node in (*nodes, *nested_nodes(nodes))):
        missing = _missing(node, defaults.get((standard_domain(node.domain), node.op_type, node.overload), ()))
        node.attribute.extend(missing)


def _missing(node: NodeProto, defaults: Iterable[AttributeProto]) -> list[AttributeProto]:
    given = {attribute.name for attribute in node.attribute}
    return [attribute for attribute in defaults if attribute.name not in given]


def _key(function: FunctionProto) -> Key:
    return standard_domain(function.domain), function.name, function.overload
