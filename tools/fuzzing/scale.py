"""Whether time and memory grow no faster than the model: graphs of a quarter, a half and all of so many nodes.

Each in a process of its own, because memory is measured at its highest. Not a test: it depends on the machine.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold

STEEPEST = 1.6  # of the time for four times the nodes, over four
GROUP = 250  # branches of one wide operator
PARAMETERS = ("gamma", "beta", "mean", "var")
N = helper.make_node


def chain(nodes: int) -> list[NodeProto]:
    """Identities and Relus, one after the other."""
    names = ["x", *(f"v{i}" for i in range(nodes - 1)), "y"]
    return [N("Relu" if i % 2 else "Identity", [names[i]], [names[i + 1]]) for i in range(nodes)]


def pairs(nodes: int) -> list[NodeProto]:
    """Conv and BatchNormalization, one after the other; every pair folds."""
    names = ["x", *(f"v{i}" for i in range(nodes // 2 - 1)), "y"]
    made = []
    for i in range(nodes // 2):
        made += [
            N("Conv", [names[i], "w"], [f"c{i}"]),
            N("BatchNormalization", [f"c{i}", *PARAMETERS], [names[i + 1]]),
        ]
    return made


def reversed_pairs(nodes: int) -> list[NodeProto]:
    """The same, in an order that has to be sorted first."""
    return list(reversed(pairs(nodes)))


def maps(nodes: int) -> list[NodeProto]:
    """Maps behind maps; none folds, and each gets a reason."""
    names = ["x", *(f"v{i}" for i in range(nodes - 1)), "y"]
    return [N("BatchNormalization", [names[i], *PARAMETERS], [names[i + 1]]) for i in range(nodes)]


def joins(nodes: int) -> list[NodeProto]:
    """Groups of maps that are added up by one wide Sum."""
    made, value = [], "x"
    for group in range(max(1, nodes // (GROUP + 1))):
        names = [f"m{group}_{i}" for i in range(GROUP)]
        made += [N("Mul", [value, "k"], [name]) for name in names]
        value = f"s{group}"
        made.append(N("Sum", names, [value]))
    return [*made, N("Identity", [value], ["y"])]


def readers(nodes: int) -> list[NodeProto]:
    """One Conv that everybody reads."""
    names = [f"v{i}" for i in range(nodes)]
    normalised = [N("BatchNormalization", ["c", *PARAMETERS], [name]) for name in names]
    return [N("Conv", ["x", "w"], ["c"]), *normalised, N("Sum", names, ["y"])]


def constants(nodes: int) -> list[NodeProto]:
    """A constant that a chain of nodes computes."""
    made = [N("Add", ["k" if i == 0 else f"k{i - 1}", "k"], [f"k{i}"]) for i in range(nodes)]
    return [*made, N("Conv", ["x", "w"], ["c"]), N("Mul", ["c", f"k{nodes - 1}"], ["y"])]


SHAPES: tuple[Callable[[int], list[NodeProto]], ...] = (chain, pairs, reversed_pairs, maps, joins, readers, constants)


def _model(nodes: list[NodeProto]) -> ModelProto:
    values = {"w": np.ones((4, 4, 1, 1)), "k": np.full((4, 1, 1), 1.5), **dict.fromkeys(PARAMETERS, np.ones(4))}
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _measure(name: str, count: int, pipe: object) -> None:
    make = next(shape for shape in SHAPES if shape.__name__ == name)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "out.onnx"
        source.write_bytes(_model(make(count)).SerializeToString())
        started = time.process_time()
        result = bnfold.fold(source, target, verify=False, sources="all")
        seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pipe.send((seconds, memory, len(result.folded), len(result.refused)))  # type: ignore[attr-defined]


def main(arguments: argparse.Namespace) -> int:
    """Measure and print; 1 where time grows faster than the model."""
    context = multiprocessing.get_context("spawn")
    lines, steep = [*arguments.heading, "graph               nodes    cpu s       MB   folded     left"], 0
    for shape in SHAPES:
        times = []
        for count in (arguments.nodes // 4, arguments.nodes // 2, arguments.nodes):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_measure, args=(shape.__name__, count, theirs))
            process.start()
            seconds, memory, folded, left = ours.recv()
            process.join()
            times.append(seconds)
            lines.append(f"{shape.__name__:16} {count:8} {seconds:8.1f} {memory:8} {folded:8} {left:8}")
            print(lines[-1], flush=True)
        if times[-1] > 4 * STEEPEST * times[0]:
            steep += 1
            lines.append(
                f"  grows faster than the model: {times[-1] / times[0]:.1f} times as long for 4 times as much"
            )
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")
    return 1 if steep else 0
