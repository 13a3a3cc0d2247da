"""Changes to the bytes of a file: flipped, cut, repeated, spliced, with lengths that lie."""

from random import Random

ODD = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x01", b"\x80" * 20, b"\x0a\x00" * 50,
       b"\x3a\x80\x80\x80\x80\x08", b"\x0b", b"\xff\xff\xff\xff\x07", b"..\\..", b"\xed\xa0\x80")  # fmt: skip


def damaged(random: Random, data: bytes, other: bytes) -> bytes:
    """A few places of `data` are another; `other` is another file to take pieces from."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        _damage(random, out, other)
    return bytes(out)


def _damage(random: Random, out: bytearray, other: bytes) -> None:
    at = random.randrange(len(out))
    length = random.choice((1, 2, 4, 16, 256))
    change = random.randrange(8)
    if change == 0:
        out[at] ^= 1 << random.randrange(8)
    elif change == 1:
        out[at] = random.randrange(256)
    elif change == 2:
        del out[at : at + length]
    elif change == 3:
        out[at:at] = out[at : at + length] * random.choice((1, 1, 50))
    elif change == 4:
        out[at:at] = random.choice(ODD)
    elif change == 5:
        piece = random.choice(ODD)
        out[at : at + len(piece)] = piece
    elif change == 6 and other:
        start = random.randrange(len(other))
        out[at : at + length] = other[start : start + length * 4]
    else:
        del out[at if random.random() < 0.3 else len(out) :]
        out[at : at + 1] = bytes([out[at] + random.choice((1, 255)) & 0xFF]) if at < len(out) else b""
