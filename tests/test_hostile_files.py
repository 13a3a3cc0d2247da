"""Files made to hurt: external data that leads elsewhere or lies, protobuf bombs, other formats, and earlier finds.

Each ends in exit 0, or in exit 2 with one line, and opens nothing outside its folder (see hostile_run).
"""

import bz2
import gzip
import lzma
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from bnfold.document import LIFT_FROM
from tests.conftest import Cli, conv_bn, tensor
from tests.hostile_run import HUGE, N, between, calling, ends_well

FINDS = Path(__file__).parent / "hostile"

# External data ------------------------------------------------------------------------------------------------------

ELSEWHERE = (
    "../secret.bin", "..", "../run/weights.bin", "sub/../../secret.bin", "./../secret.bin", "sub/./../../secret.bin",
    "/etc/passwd", "//etc/passwd", "/proc/self/environ", "/proc/self/mem", "/dev/zero", "/dev/stdin", "/dev/tty",
    "proc/environ", "proc/fd/0", "link.bin", "zero.bin", "linked/secret.bin", "hard.bin", "pipe.bin", "socket.bin",
    "folder.bin", "folder.bin/", "dangling.bin", "circle.bin", "\\etc\\passwd", "..\\secret.bin", "a\\..\\..\\b",
    "C:\\secret.bin", "C:/secret.bin", "C:weights.bin", "c:", "\\\\server\\share\\x", "\\\\?\\C:\\x", "//?/C:/x",
    "\\\\.\\pipe\\x", "NUL", "CON", "file:///etc/passwd", "http://localhost/x", "~/.bashrc", "$HOME/.bashrc",
    "weights.bin\0", "weights.bin\0/../../secret.bin", "weights.bin/x", "n" * 5000, "n/" * 5000, "", ".", "./", "*",
)  # fmt: skip


def point(held: TensorProto, **fields: object) -> TensorProto:
    """Make a tensor say that its numbers lie elsewhere."""
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    for key, value in fields.items():
        held.external_data.add(key=key, value=str(value))
    return held


def folder_of_traps(folder: Path) -> None:
    """A data file, and beside it everything that is none."""
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(4096))
    (folder.parent / "secret.bin").write_bytes(bytes(4096))
    links = {"link.bin": "../secret.bin", "zero.bin": "/dev/zero", "proc": "/proc/self", "linked": "..",
             "dangling.bin": "absent", "circle.bin": "circle.bin"}  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe.bin")
    (folder / "folder.bin").mkdir()
    where = Path.cwd()
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.bin")
    finally:
        os.chdir(where)


def _lies() -> Iterator[tuple[str, ModelProto]]:
    """Offsets, lengths and shapes that are no numbers, overflow, or do not fit the file."""
    odd = (-1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**18, 10**30, "1e3", "0x10", " 1", "", "nan", "9" * 400)
    for value in odd:
        for key in ("offset", "length"):
            proto = conv_bn((4, 3, 1, 1))
            point(proto.graph.initializer[0], location="weights.bin", **{key: value})
            yield f"{key} {str(value)[:30]}", proto
    for dims in ([HUGE], [2**62, 4], [2**63 - 1] * 4, [-1, 3, 1, 1], [-4, -3, 1, 1], [2**31] * 40):
        proto = conv_bn((4, 3, 1, 1))
        point(proto.graph.initializer[0], location="weights.bin", offset=0)
        proto.graph.initializer[0].dims[:] = dims
        yield f"dims {dims[:4]}", proto
    for kind in (0, 8, 27, 1000, -1):
        proto = conv_bn((4, 3, 1, 1))
        point(proto.graph.initializer[0], location="weights.bin", length=48)
        proto.graph.initializer[0].data_type = kind
        yield f"type {kind}", proto


def _places(held: TensorProto) -> Iterator[tuple[str, ModelProto]]:
    """The tensor in every place where one can be."""
    sparse = helper.make_sparse_tensor(held, tensor("i", [0, 1], np.int64), [9])
    indices = helper.make_sparse_tensor(tensor("v", [1.0, 2.0]), tensor("i", [0, 1], np.int64), [9])
    indices.indices.CopyFrom(held)
    constant = N("Constant", [], ["k"], value=held)
    body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("k", TensorProto.FLOAT, None)])
    nodes = {
        "attribute": constant,
        "branch": N("If", ["h"], ["k"], then_branch=body, else_branch=body),
        "other operator": N("Other", ["h"], ["k"], domain="custom", anything=held, several=[held, held]),
        "graph of other operator": N("Other", ["h"], ["k"], domain="custom", body=body),
        "sparse attribute": N("Constant", [], ["k"], sparse_value=sparse),
    }
    for name, node in nodes.items():
        yield name, between(N("Identity", ["h"], ["o"]), node)
    for name in ("initializer", "sparse", "indices", "function", "training"):
        proto = calling() if name == "function" else conv_bn((4, 3, 1, 1))
        if name == "function":
            imports = [helper.make_opsetid("", 17)]
            proto.functions.append(helper.make_function("l", "F0", ["a"], ["k"], [constant], imports))
        elif name == "training":
            proto.training_info.add().algorithm.initializer.append(held)
        elif name == "initializer":
            proto.graph.initializer.append(held)
        else:
            proto.graph.sparse_initializer.append(sparse if name == "sparse" else indices)
        yield name, proto


@pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and sockets are set up the POSIX way")
def test_external_data_that_leads_elsewhere(tmp_path: Path) -> None:
    """Out of the folder in any spelling, through links, to devices, pipes, sockets: refused, and never opened."""
    cases: dict[str, ModelProto] = {}
    for location in ELSEWHERE:
        cases[f"at {location[:40]!r}"] = conv_bn((4, 3, 1, 1))
        point(cases[f"at {location[:40]!r}"].graph.initializer[0], location=location, length=48)
    held = point(tensor("held", [1.0, 2.0]), location="../secret.bin", length=8)
    cases |= {f"in {place}": proto for place, proto in _places(held)}
    twice = conv_bn((4, 3, 1, 1))
    point(twice.graph.initializer[0], location="weights.bin").external_data.add(key="location", value="../secret.bin")
    cases["safe, then unsafe"] = twice
    folder_of_traps(tmp_path / "run")
    ends = ends_well({name: proto.SerializeToString() for name, proto in cases.items()}, tmp_path / "run")
    assert {name for name, end in ends.items() if end.code != 2} == set()


def test_external_data_that_lies(tmp_path: Path) -> None:
    """Numbers that are none, that overflow, or that do not fit the file: refused before anything is read."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.bin").write_bytes(bytes(48))
    cases = {name: proto.SerializeToString() for name, proto in _lies()}
    ends = ends_well(cases, tmp_path / "run")
    assert {name for name, end in ends.items() if end.code != 2} <= {f"type {kind}" for kind in (0, 8, 27, 1000, -1)}


# Bytes --------------------------------------------------------------------------------------------------------------


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    head, length = bytes([number << 3 | 2]), len(data)
    while length > 0x7F:
        head += bytes([length & 0x7F | 0x80])
        length >>= 7
    return head + bytes([length]) + data


def of_graph(graph: bytes) -> bytes:
    """The bytes of a model with this graph."""
    return b"\x08\x08" + field(8, b"\x0a\x00\x10\x11") + field(7, graph)


BOMBS = {
    "20,000 empty nodes": of_graph(b"\x0a\x00" * 20_000),
    "100,000 empty initializers": of_graph(b"\x2a\x00" * 100_000),
    "20,000 empty inputs and outputs": of_graph(b"\x5a\x00\x62\x00" * 10_000),
    "20,000 empty functions": of_graph(b"") + b"\xca\x01\x00" * 20_000,
    "300,000 empty attributes": of_graph(field(1, b"\x2a\x00" * 300_000)),
    "a million inputs of one node": of_graph(field(1, b"\x0a\x00" * 1_000_000)),
    "a million dims": of_graph(field(5, field(1, b"\x01" * 1_000_000) + field(8, b"w"))),
    "a million dims of 2^63": of_graph(field(5, field(1, (b"\xff" * 8 + b"\x7f") * 100_000) + field(8, b"w"))),
    "200,000 graphs": b"\x08\x08" + field(8, b"\x0a\x00\x10\x11") + field(7, b"") * 200_000,
    "200,000 opset imports": b"\x08\x08" + field(8, b"\x0a\x00\x10\x11") * 200_000 + field(7, b""),
    "groups 100,000 deep": of_graph(b"") + b"\xfb\x3f" * 100_000,
    "fields 10,000 deep": of_graph(b"\x0a\x7f" * 10_000),
    "a length of 2^31": b"\x08\x08\x3a\xff\xff\xff\xff\x07",
    "a length of 2^63": b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01",
    "a varint without end": b"\x08" + b"\x80" * 100_000,
    "field number 0": b"\x08\x08\x02\x01a",
    "zeros": bytes(1_000_000),
    "ones": b"\xff" * 1_000_000,
    "text": b"onnx " * 100_000,
}


def test_bombs(tmp_path: Path) -> None:
    """Small files that unfold into many messages, or claim to be long: bounded memory, one line or none."""
    ends_well(BOMBS, tmp_path / "run", ("fold",))


def test_bombs_among_large_tensors(tmp_path: Path) -> None:
    """Files that are large enough to be walked by bnfold's own reader: odd ones are left to protobuf."""
    proto = conv_bn((4, 3, 1, 1))
    proto.graph.initializer.append(tensor("large", np.zeros(LIFT_FROM // 4)))
    data = proto.SerializeToString()
    raw = field(9, bytes(1 << 17))
    extra = field(7, field(5, field(8, b"more") + raw))
    cases = {
        "as it is": data,
        "two graphs": data + extra,
        "raw_data twice": data.replace(b"\x42\x05large", b"\x42\x05large" + raw, 1),
        "a group behind": data + b"\x0b\x0c",
        "cut": data[:-1],
        "a length that lies": data + b"\x3a\xff\xff\xff\x7f",
        "a varint without end": data + b"\x80" * 100,
        "a tensor of many fields": data + field(7, field(5, b"\x10\x01" * 50_000 + raw)),
    }
    ends = ends_well(cases, tmp_path / "run", ("fold",))
    assert ends["as it is"].code == 0
    assert {ends[case].code for case in ("cut", "a length that lies", "a varint without end")} == {2}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gzip.compress(conv_bn().SerializeToString()), "compressed"),
        (bz2.compress(bytes(10**6)), "compressed"),
        (lzma.compress(bytes(10**6)), "compressed"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x80\x04\x95" + bytes(100), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_packed_files_are_never_unpacked(data: bytes, word: str, tmp_path: Path, cli: Cli) -> None:
    """Archives, compressed files, pickles and pointers are told by their first bytes, and not looked into."""
    (tmp_path / "model.onnx").write_bytes(data)
    code, out, err = cli("fold", tmp_path / "model.onnx")
    assert (code, out) == (2, "")
    assert word in err


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no such files here")
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_a_model_that_is_no_plain_file(path: str, cli: Cli) -> None:
    """Devices have no end, and process memory cannot be read: one line."""
    code, out, err = cli("inspect", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


# Finds --------------------------------------------------------------------------------------------------------------


def test_earlier_finds(tmp_path: Path) -> None:
    """What fuzzing found once (see tests/hostile/README.md) ends well now."""
    finds = {path.name: path.read_bytes() for path in sorted(FINDS.glob("*.onnx"))}
    assert finds
    ends_well(finds, tmp_path / "run")


def test_attributes_of_type_graphs_are_looked_into() -> None:
    """The tensors of an attribute that holds several graphs count as the model's."""
    from bnfold.external import all_tensors

    graph = onnx.GraphProto(initializer=[tensor("inside", [1.0])])
    proto = conv_bn((4, 3, 1, 1))
    proto.graph.node[0].attribute.add(name="bodies", type=AttributeProto.GRAPHS, graphs=[graph])
    assert "inside" in {held.name for held in all_tensors(proto)}
