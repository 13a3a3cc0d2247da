"""Where the products of a model really ran.

A session on CUDA quietly runs on the CPU what CUDA has no kernel for. Of shapes and indices that is meant; of a Conv,
Gemm or MatMul it means that the comparison says nothing about CUDA. onnxruntime's profile of a run tells: a JSON list
of events, of which those of category "Node" name the node, the operator, the provider that ran it and the types of
its inputs. Source: onnxruntime's documentation, "Profiling Tools"; files of 1.22 and 1.32.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bnfold.nodes import label, nested_nodes
from bnfold.text import printable
from bnfold.verification.feeds import Feeds
from bnfold.verification.providers import Provider
from bnfold.verification.runtime import CannotRunError, Model, OrtRunner, Settings, in_memory, load_graph

PRODUCTS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_FLOATS = frozenset(["float", "float16", "bfloat16", "double"])
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Ran:
    """One node that ran.

    Attributes:
        node: its name.
        op: its operator.
        provider: onnxruntime's name of what ran it.
        kind: the type of its first input, as onnxruntime calls it: "float", "int64", ...; "" where it is not known.
    """

    node: str
    op: str
    provider: str
    kind: str = ""

    @property
    def is_product(self) -> bool:
        """Whether it multiplies floating-point numbers; whole numbers are shapes."""
        return self.op in PRODUCTS and (not self.kind or self.kind in _FLOATS)


def placement_problem(
    models: Sequence[tuple[str, Model]], provider: Provider, settings: Settings, feeds: Feeds
) -> str:
    """Why the runs of some models on these inputs were not runs on this provider; empty where they were.

    Each model runs once more, in a session of its own that is thrown away.

    Args:
        models: each with what to call it.
        provider: where all products should run.
        settings: of the sessions that were judged.
        feeds: the inputs.
    """
    for what, model in models:
        try:
            ran = profile(model, provider, settings, feeds)
        except (CannotRunError, OSError, ValueError) as error:
            return f"it cannot be told where {what} ran: {error}"
        if not any(r.is_product for r in ran) and has_products(load_graph(model)):
            return f"it cannot be told where {what} ran: the profile of onnxruntime lists no product"
        others = elsewhere(ran, provider.name)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            return f"{others[0].node} of {what}{more} ran on {others[0].provider} instead of {provider.name}"
    return ""


def elsewhere(ran: Iterable[Ran], provider: str) -> list[Ran]:
    """The products that did not run on this provider, each node once."""
    return list(dict.fromkeys(r for r in ran if r.is_product and r.provider != provider))


def has_products(model: ModelProto) -> bool:
    """Whether something in the main graph, which runs in any case, is called a product."""
    return any(node.op_type in PRODUCTS for node in model.graph.node)


def profile(model: Model, provider: Provider, settings: Settings, feeds: Feeds) -> list[Ran]:
    """What ran where in one run, nodes called as in messages (`label`).

    The profile lies in a temporary folder, which is gone when this returns, raises, or is interrupted.

    Raises:
        CannotRunError: it does not run.
        ValueError: the profile is not what it should be.
    """
    proto = load_graph(model)
    names = _name_all(proto)
    with tempfile.TemporaryDirectory(prefix="bnfold-", ignore_cleanup_errors=True) as folder:
        profiled = replace(settings, profile=str(Path(folder) / "profile"))
        runner = OrtRunner(in_memory(proto, model), provider, profiled)
        try:
            runner.run(feeds)
        finally:
            path = runner.end_profile()
        ran = read_profile(path.read_bytes())
    return [replace(r, node=names.get(r.node) or f"{printable(r.op)} '{printable(r.node)}'") for r in ran]


def _name_all(model: ModelProto) -> dict[str, str]:
    """How each node is called in messages, by its name; those of `model` without a name get one."""
    names: dict[str, str] = {}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in (*nodes, *nested_nodes(nodes)):
            called = label(node)
            node.name = node.name or f"unnamed {len(names)}"
            names.setdefault(node.name, called)
    return names


def read_profile(data: bytes) -> list[Ran]:
    """The nodes that ran, in their order.

    Args:
        data: a profile as onnxruntime writes it.

    Raises:
        ValueError: it is none.
    """
    try:
        events = json.loads(data)
        return [_ran(event) for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"onnxruntime's profile cannot be read ({type(error).__name__}: {error})") from None


def _ran(event: dict[str, Any]) -> Ran:
    arguments = event["args"]
    inputs = arguments.get("input_type_shape") or [{}]
    kind = next(iter(inputs[0]), "")
    return Ran(str(event["name"]).removesuffix(_SUFFIX), arguments["op_name"], arguments["provider"], kind)
