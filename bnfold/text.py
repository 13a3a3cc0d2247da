"""Names out of a model file are foreign text: made safe before they reach a terminal or a report."""

import re
from collections.abc import Sequence

SCOPE_MARK = "\0scope:"  # and a number: which nested body defines a name (see `scopes`)
_MARK = re.compile(f"{SCOPE_MARK}[0-9]+")


def unmarked(name: str) -> str:
    """The name as the file has it, without the mark of its scope."""
    return _MARK.sub("", name) if "\0" in name else name


def printable(name: str | bytes, limit: int = 200) -> str:
    r"""`name` with control and other unprintable characters as \x1b-like escapes, cut at `limit` characters.

    protobuf hands over as bytes what is not UTF-8.
    """
    if isinstance(name, bytes):
        name = name.decode(errors="backslashreplace")
    if len(name) <= limit and name.isprintable():
        return name
    name = unmarked(name)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:limit])
    return safe if len(name) <= limit else f"{safe}..."


def listed(sizes: Sequence[int], limit: int = 16) -> str:
    """Dimensions as `[64, 3, 7, 7]`, cut at `limit` of them."""
    shown = ", ".join(map(str, sizes[:limit]))
    return f"[{shown}]" if len(sizes) <= limit else f"[{shown}, ...]"


def size(count: int) -> str:
    """A number of bytes for people: 98.2 MB (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def plural(count: int, noun: str) -> str:
    """`1 map`, `2 maps`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
