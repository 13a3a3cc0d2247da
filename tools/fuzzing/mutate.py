"""One example: a seed and a few changes, all decided by (seed, index), so that it can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, compose

from tests.random_graphs import random_model
from tools.fuzzing import attributes, fields, graphs, scopes, values
from tools.fuzzing.raw import damaged
from tools.fuzzing.tree import CannotChange

KINDS = {"structure": 72, "cross": 10, "bytes": 15, "seed": 3}
CHANGES = {k: w for part in (fields, attributes, graphs, values, scopes) for k, w in part.CHANGES.items()}
RANDOM_GRAPHS = 0.25  # of all examples start from one
PLAIN = (CannotChange, IndexError, ValueError, TypeError, OverflowError, StopIteration, RecursionError)


@dataclass(frozen=True, slots=True)
class Seed:
    """A model to start from. `family` says where it is from; each is as likely as its weight."""

    family: str
    name: str
    data: bytes


@dataclass(slots=True)
class Example:
    """A file to try: what was done to which seed."""

    data: bytes
    kind: str
    seed: str
    changes: list[str] = field(default_factory=list)


FAMILIES = {"case": 35, "nested": 15, "backend": 25, "model": 6, "shared": 10, "find": 9}


def example(seed: int, index: int, seeds: Sequence[Seed]) -> Example:
    """Example `index` of this seed."""
    random = Random(f"{seed}-{index}")
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    name, data = _start(random, seed, index, seeds)
    found = Example(data, kind, name)
    if kind == "seed":
        return found
    if kind == "bytes":
        found.data = damaged(random, data, _start(random, seed, index, seeds)[1])
        return found
    proto = ModelProto.FromString(data)
    if kind == "cross":
        _cross(random, proto, _start(random, seed, index, seeds)[1], found)
    change_some(random, proto, found)
    found.data = proto.SerializeToString()
    return found


def change_some(random: Random, proto: ModelProto, found: Example) -> None:
    """One change, or a few; notes which."""
    count = random.choice((1, 1, 2, 2, 3, 4, 6))
    tried = 0
    while len(found.changes) < count and tried < 20:
        tried += 1
        change = random.choices(list(CHANGES), list(CHANGES.values()))[0]
        try:
            change(random, proto)
        except PLAIN:  # half done is as good as done
            continue
        found.changes.append(change.__name__)


def _start(random: Random, seed: int, index: int, seeds: Sequence[Seed]) -> tuple[str, bytes]:
    if random.random() < RANDOM_GRAPHS:
        numbers = np.random.default_rng([seed, index, random.randrange(1000)])
        return "random graph", random_model(numbers).proto.SerializeToString()
    families = {f: w for f, w in FAMILIES.items() if any(s.family == f for s in seeds)}
    family = random.choices(list(families), list(families.values()))[0]
    one = random.choice([s for s in seeds if s.family == family])
    return f"{one.family}/{one.name}", one.data


def _cross(random: Random, proto: ModelProto, data: bytes, found: Example) -> None:
    """Nodes, constants and functions of another model join this one; a few edges lead across."""
    try:
        other = ModelProto.FromString(data)
        if random.random() < 0.8:
            other = compose.add_prefix(other, "o_")
    except (DecodeError, *PLAIN):
        return
    mine = [name for node in proto.graph.node for name in node.output if name]
    for name in ("node", "initializer", "sparse_initializer", "value_info", "quantization_annotation"):
        getattr(proto.graph, name).extend(getattr(other.graph, name))
    proto.functions.extend(other.functions)
    inputs = [value.name for value in other.graph.input]
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name in inputs and mine and random.random() < 0.8:
                node.input[slot] = random.choice(mine)
    proto.graph.input.extend(value for value in other.graph.input if random.random() < 0.8)
    proto.graph.output.extend(value for value in other.graph.output if random.random() < 0.8)
    known = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(entry for entry in other.opset_import if entry.domain not in known)
    found.changes.append("cross")
