"""Undo files that were damaged or forged: exit 2 and one line, nothing written, bounded memory and time."""

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold.errors import OutputError, UndoError
from bnfold.undo.form import COPY, HEAD, LEAST_COPY, NUMBERS, TAIL, TEXT, unzigzag, varint, zigzag
from tests.conftest import Cli, conv_bn
from tests.test_output import listing, put

FOLDED = b"".join(hashlib.sha256(bytes([count])).digest() for count in range(32))  # 1024 bytes
posix = pytest.mark.skipif(os.name == "nt", reason="FIFOs and symbolic links as POSIX has them")


def entry(called: str, data: bytes, **other: Any) -> dict[str, Any]:
    """A file in an index; `other` says something else of it."""
    return {"name": called, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **other}


def forged(
    script: bytes = b"", numbers: bytes = b"", *, deflated: bytes | None = None, folded: Any = None,
    original: Any = None, more: Any = None,
) -> bytes:  # fmt: skip
    """An undo file with a true checksum and whatever else is given."""
    packed = zlib.compress(script) if deflated is None else deflated
    tree = {
        "bnfold": "0", "script": len(packed), "numbers": len(numbers),
        "folded": [entry("o.onnx", FOLDED)] if folded is None else folded,
        "original": [entry("m.onnx", FOLDED)] if original is None else original, **(more or {}),
    }  # fmt: skip
    text = json.dumps(tree).encode()
    return HEAD + packed + numbers + text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + TAIL


def copy(length: int, place: int = 0, move: int = 0) -> bytes:
    """A COPY."""
    return varint(length << 2 | COPY) + varint(place) + varint(zigzag(move))


def refused(folder: Path, undo: bytes, output: str = "back.onnx") -> str:
    """The message with which an undo file is refused; the folder stays as it is."""
    (folder / "o.onnx").write_bytes(FOLDED)
    (folder / "undo").write_bytes(undo)
    before = listing(folder)
    with pytest.raises((UndoError, OutputError)) as caught:
        bnfold.unfold(folder / "o.onnx", folder / "undo", folder / output)
    assert listing(folder) == before
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_forger_can_forge(tmp_path: Path) -> None:
    """What these tests change is valid before: every kind of instruction works."""
    data = b"hello" + FOLDED[100:200] + b"12345" + FOLDED[50:150]
    script = varint(5 << 2 | TEXT) + b"hello" + copy(100, move=100) + varint(5 << 2 | NUMBERS) + copy(100, move=-150)
    (tmp_path / "o.onnx").write_bytes(FOLDED)
    (tmp_path / "undo").write_bytes(forged(script, b"12345", original=[entry("m", data), entry("a/w.bin", b"")]))
    restored = bnfold.unfold(tmp_path / "o.onnx", tmp_path / "undo", tmp_path / "back.onnx")
    assert restored.path.read_bytes() == data
    assert [path.read_bytes() for path in restored.data] == [b""]


@pytest.mark.parametrize("number", [0, 1, -1, 2, -2, 127, 128, -(2**40), 2**40])
def test_zigzag(number: int) -> None:
    """Every number comes back, and none is negative on the way."""
    assert unzigzag(zigzag(number)) == number
    assert zigzag(number) >= 0


SCRIPTS: dict[str, bytes] = {
    "nothing": b"",
    "too little": copy(1000),
    "too much": copy(1024) + copy(24, move=-1024),
    "one too long": copy(1025),
    "behind the end": copy(1024, move=1),
    "before the start": copy(1024, move=-1),
    "far away": copy(1024, move=2**61),
    "another file": copy(1024, place=1),
    "a file of that number never": copy(1024, place=2**61),
    "too short a copy": copy(LEAST_COPY - 1) + copy(1024 - LEAST_COPY + 1),
    "no length": varint(COPY) + varint(0) + varint(0) + copy(1024),
    "no text": varint(TEXT) + copy(1024),
    "text twice": varint(1 << 2) + FOLDED[:1] + varint(1 << 2) + FOLDED[1:2] + copy(1022, move=2),
    "a kind that is none": varint(1024 << 2 | 3),
    "numbers that are not there": varint(1024 << 2 | NUMBERS),
    "text that is not there": varint(1024 << 2 | TEXT) + b"abc",
    "a number that does not end": b"\xff" * 20,
    "a number that stops": b"\x80",
    "a huge number": b"\xff" * 8 + b"\x7f",
    "the same twice": copy(512) + copy(512, move=-512),
    "other bytes": varint(1024 << 2 | TEXT) + bytes(1024),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_instructions_that_make_no_sense(case: str, tmp_path: Path) -> None:
    """Ranges outside, lengths that lie, endless numbers: refused, whatever the checksums say."""
    why = "would have SHA-256" if case in ("the same twice", "other bytes") else "its instructions make no sense"
    assert why in refused(tmp_path, forged(SCRIPTS[case]))


def test_a_copy_bomb(tmp_path: Path) -> None:
    """No more is copied than the folded files hold together, though what comes of it would be right."""
    undo = forged(copy(1024) + copy(1024, move=-1024), original=[entry("m.onnx", FOLDED * 2)])
    assert "its instructions make no sense" in refused(tmp_path, undo)


FILES: dict[str, dict[str, Any]] = {
    "10^15 bytes": {"original": [entry("m.onnx", FOLDED, size=10**15)]},
    "more than can be": {"original": [entry("m.onnx", FOLDED, size=1024 + 30 * 1040)]},
    "a negative size": {"original": [entry("m.onnx", FOLDED, size=-1)]},
    "a size that is true": {"original": [entry("m.onnx", FOLDED, size=True)]},
    "a size in words": {"original": [entry("m.onnx", FOLDED, size="1024")]},
    "a size beyond 64 bits": {"original": [entry("m.onnx", FOLDED, size=2**70)]},
    "half a size": {"original": [entry("m.onnx", FOLDED, size=0.5)]},
    "no files": {"original": []},
    "no folded files": {"folded": []},
    "files in words": {"original": "none"},
    "a file twice": {"original": [entry("m.onnx", FOLDED), entry("m.onnx", FOLDED)]},
    "a short digest": {"original": [entry("m.onnx", FOLDED, sha256="00")]},
    "another digest": {"original": [entry("m.onnx", FOLDED, sha256="0" * 64)]},
    "a name that is a number": {"original": [entry("m.onnx", FOLDED, name=7)]},
    "a script of another length": {"more": {"script": 5}},
    "numbers of a negative length": {"more": {"numbers": -3}},
    "a list for a file": {"folded": [[]]},
    "not deflated": {"deflated": b"\x00" * 30},
    "cut short inside": {"deflated": zlib.compress(copy(1024))[:-3]},
    "more behind it": {"deflated": zlib.compress(copy(1024)) + b"more"},
    "instructions left over": {"script_": copy(1024) + copy(30, move=-50)},
    "numbers left over": {"numbers_": b"abc"},
}


@pytest.mark.parametrize("case", FILES)
def test_an_index_that_lies(case: str, tmp_path: Path) -> None:
    """Sizes, counts, types and parts that cannot be: refused before anything is allocated or written."""
    options = dict(FILES[case])
    script, numbers = options.pop("script_", copy(1024)), options.pop("numbers_", b"")
    assert "damaged" in refused(tmp_path, forged(script, numbers, **options))


NAMES = ["../w.bin", "/etc/w.bin", "a/../../w.bin", "..", "", ".", "a\0b", "C:\\w.bin", "..\\w.bin", "link/w.bin",
         "\\\\host\\share\\w.bin"]  # fmt: skip


@posix
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["folded", "original"])
def test_names_that_escape(side: str, name: str, tmp_path: Path) -> None:
    """No file outside the model's folder is read or written, whatever the undo file calls it."""
    inner = tmp_path / "in"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(b"secret")
    (inner / "link").symlink_to(tmp_path)
    files = [entry("o.onnx", FOLDED), entry(name, b"secret")]
    script = copy(1024) + varint(6 << 2 | TEXT) + b"secret"
    message = refused(inner, forged(script, **{side: files}))
    assert "not in the model's folder" in message or "symbolic link" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "w.bin"]
    assert (tmp_path / "w.bin").read_bytes() == b"secret"


@posix
@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_no_plain_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    """A FIFO would never answer; each is named."""
    path = tmp_path / "w.bin"
    {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "link": lambda: path.symlink_to(tmp_path / "undo")}[
        kind
    ]()
    (tmp_path / "o.onnx").write_bytes(FOLDED)
    undo = tmp_path / "undo"
    undo.write_bytes(forged(copy(1024), folded=[entry("o.onnx", FOLDED), entry("w.bin", b"1")]))
    with pytest.raises(UndoError, match=r"w\.bin"):
        bnfold.unfold(tmp_path / "o.onnx", undo, tmp_path / "back.onnx")
    if kind != "link":
        with pytest.raises(UndoError, match=r"not a plain file"):
            bnfold.unfold(tmp_path / "o.onnx", path, tmp_path / "back.onnx")


def test_data_under_the_name_of_the_output(tmp_path: Path) -> None:
    """Two files for one place: refused."""
    files = [entry("m.onnx", FOLDED), entry("./back.onnx", b"")]
    assert "name of the original's data" in refused(tmp_path, forged(copy(1024), original=files))


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    """One bit turned anywhere, or the end missing: refused, and nothing written."""
    source = put(conv_bn(), tmp_path / "m.onnx", external=True)
    bnfold.fold(source, tmp_path / "o.onnx", verify=False, undo_file=tmp_path / "undo")
    undo = (tmp_path / "undo").read_bytes()
    before = listing(tmp_path)
    damaged = [undo[:at] + bytes([undo[at] ^ 1 << at % 8]) + undo[at + 1 :] for at in range(0, len(undo), 3)]
    damaged += [undo[:at] for at in range(0, len(undo), 41)] + [undo + b"\0"]
    for data in damaged:
        (tmp_path / "undo").write_bytes(data)
        with pytest.raises(UndoError):
            bnfold.unfold(tmp_path / "o.onnx", tmp_path / "undo", tmp_path / "b.onnx")
    (tmp_path / "undo").write_bytes(undo)
    assert listing(tmp_path) == before
    assert len(damaged) > 300


@pytest.mark.parametrize("data", [b"", b"x", HEAD, HEAD + TAIL, b"x" * 5000, HEAD + b"x" * 5000 + TAIL, HEAD[:8] * 9])
def test_what_is_no_undo_file(data: bytes, tmp_path: Path, cli: Cli) -> None:
    """Any other file: one line that names it, exit 2."""
    (tmp_path / "o.onnx").write_bytes(FOLDED)
    (tmp_path / "undo").write_bytes(data)
    code, out, err = cli("unfold", tmp_path / "o.onnx", tmp_path / "undo", "-o", tmp_path / "b.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / "undo") in err


@pytest.mark.parametrize("missing", ["o.onnx", "undo"])
def test_files_that_are_not_there(missing: str, tmp_path: Path, cli: Cli) -> None:
    """Exit 2, and the name of the file."""
    bnfold.fold(put(conv_bn(), tmp_path / "m.onnx"), tmp_path / "o.onnx", verify=False, undo_file=tmp_path / "undo")
    (tmp_path / missing).unlink()
    code, _, err = cli("unfold", tmp_path / "o.onnx", tmp_path / "undo", "-o", tmp_path / "b.onnx")
    assert code == 2
    assert f"cannot read {tmp_path / missing}" in err


MEASURED = (
    "import resource, sys; from bnfold.cli import _run; code = _run(sys.argv[1:]); "
    "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def measured(args: Sequence[Any]) -> tuple[int, int]:
    """Exit code and peak memory in KiB of a process of its own."""
    command = [sys.executable, "-c", MEASURED, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, peak = done.stdout.split()
    return int(code), int(peak)


@posix
def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """150 kB that inflate to 150 MB of text: made piece by piece, then refused, and nothing is left."""
    size = 150 * 10**6
    deflate = zlib.compressobj(9)
    deflated = deflate.compress(varint(size << 2 | TEXT))
    deflated += b"".join(deflate.compress(bytes(10**6)) for _ in range(150)) + deflate.flush()
    (tmp_path / "o.onnx").write_bytes(FOLDED)
    (tmp_path / "undo").write_bytes(forged(deflated=deflated, original=[entry("m.onnx", FOLDED, size=size)]))
    (tmp_path / "small").write_bytes(b"")
    before = listing(tmp_path)
    code, plain = measured(["unfold", tmp_path / "o.onnx", tmp_path / "small", "-o", tmp_path / "b.onnx"])
    assert code == 2
    code, peak = measured(["unfold", tmp_path / "o.onnx", tmp_path / "undo", "-o", tmp_path / "b.onnx"])
    assert code == 2
    assert peak - plain < 20_000
    assert listing(tmp_path) == before
