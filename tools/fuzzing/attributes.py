"""Changes to the attributes of nodes: gone, of another value, another type, or another's."""

from collections.abc import Callable
from random import Random
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto

from tools.fuzzing.fields import FLOATS, integer
from tools.fuzzing.tree import ATTRIBUTE_FIELDS, CannotChange, of_kind, pick


def attribute(random: Random, model: ModelProto) -> None:
    """An attribute is gone, has another value, another type, another name, or is another's."""
    node = pick(random, (node for node in of_kind(model, NodeProto) if node.attribute))
    entry = random.choice(node.attribute)
    change = random.choice((_remove, _confuse, _confuse, _borrow, _refer, _nudge, _nudge, _nudge, _nudge))
    change(random, model, node, entry)


def _remove(_random: Random, _model: ModelProto, node: NodeProto, entry: AttributeProto) -> None:
    node.attribute.remove(entry)


def _confuse(random: Random, _model: ModelProto, _node: NodeProto, entry: AttributeProto) -> None:
    if random.random() < 0.5:
        entry.type = random.choice((*range(15), 99))
        return
    kind = random.choice(list(ATTRIBUTE_FIELDS))
    entry.type = kind
    samples: dict[str, Any] = {
        "f": 1.0,
        "i": 1,
        "s": b"SAME_UPPER",
        "floats": [1.0],
        "ints": [1, 1],
        "strings": [b"x"],
    }
    name = ATTRIBUTE_FIELDS[kind]
    if isinstance(samples.get(name), list):
        getattr(entry, name).extend(samples[name])
    elif name in samples:
        setattr(entry, name, samples[name])


def _borrow(random: Random, model: ModelProto, node: NodeProto, entry: AttributeProto) -> None:
    other = pick(random, (a for n in of_kind(model, NodeProto) for a in n.attribute))
    name = entry.name
    copy = AttributeProto()
    copy.CopyFrom(other)
    if random.random() < 0.5:
        copy.name = name
        node.attribute.remove(entry)
    node.attribute.append(copy)


def _refer(random: Random, _model: ModelProto, _node: NodeProto, entry: AttributeProto) -> None:
    entry.ref_attr_name = random.choice(("alpha", entry.name, ""))


def _nudge(random: Random, _model: ModelProto, _node: NodeProto, entry: AttributeProto) -> None:
    if entry.ints:
        place = random.randrange(len(entry.ints))
        change = random.random()
        if change < 0.15:
            del entry.ints[place]
        elif change < 0.3:
            entry.ints.append(random.choice((0, 1, -1)))
        else:
            entry.ints[place] = integer(random, entry.ints[place])
    elif entry.HasField("i"):
        entry.i = integer(random, entry.i)
    elif entry.HasField("f"):
        entry.f = random.choice((*FLOATS, entry.f * 2))
    elif entry.HasField("s"):
        entry.s = random.choice((b"", b"VALID", b"SAME_UPPER", b"NOTSET", b"\xff\xfe", b"linear", b"reflect", b"DCR"))
    else:
        raise CannotChange


Change = Callable[[Random, ModelProto], None]
CHANGES: dict[Change, int] = {attribute: 10}
