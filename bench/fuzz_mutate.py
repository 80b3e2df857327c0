"""Damage files: flip bits; overwrite, truncate, insert, repeat and drop bytes; write wrong lengths and digits.

The damage is determined by the state of the `random.Random` that is passed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from random import Random

HEAD_BYTES = 160
HEAD_SHARE = 0.35


def mutate(content: bytes, rng: Random) -> bytes:
    """Apply one to four kinds of damage; more than a third of the positions are in the first bytes, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(DAMAGE)(data, _place(data, rng), rng)
    return bytes(data)


def mutate_archive(content: bytes, rng: Random) -> bytes:
    """Damage the archive's bytes in half of the cases, else one member's bytes with a correct checksum."""
    if rng.random() < 0.5:
        return mutate(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    damaged = rng.choice(sorted(members))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, mutate(member, rng) if name == damaged else member)
    return out.getvalue()


def _place(data: bytearray, rng: Random) -> int:
    end = min(len(data), HEAD_BYTES) if rng.random() < HEAD_SHARE else len(data)
    return rng.randrange(end) if end else 0


def _length(data: bytearray, rng: Random) -> int:
    """Return the length of a damage: usually a few bytes, sometimes up to the whole file."""
    return rng.randint(1, 16) if rng.random() < 0.7 else rng.randint(1, max(len(data), 1))


def _flip_bits(data: bytearray, place: int, rng: Random) -> None:
    for _ in range(rng.randint(1, 4)):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, place: int, rng: Random) -> None:
    stop = min(place + _length(data, rng), len(data))
    data[place:stop] = rng.randbytes(stop - place)


def _fill(data: bytearray, place: int, rng: Random) -> None:
    stop = min(place + _length(data, rng), len(data))
    data[place:stop] = bytes([rng.choice((0, 0xFF, 0x20, 0x25, 0x80))]) * (stop - place)


def _truncate(data: bytearray, place: int, rng: Random) -> None:
    del data[place if rng.random() < 0.3 else -rng.randint(1, 40) :]


def _insert(data: bytearray, place: int, rng: Random) -> None:
    data[place:place] = rng.randbytes(_length(data, rng))


def _repeat(data: bytearray, place: int, rng: Random) -> None:
    block = data[place : place + _length(data, rng)]
    data[place:place] = block * rng.choice((1, 1, 2, 7))


def _drop(data: bytearray, place: int, rng: Random) -> None:
    del data[place : place + _length(data, rng)]


def _move(data: bytearray, place: int, rng: Random) -> None:
    block = data[place : place + _length(data, rng)]
    other = _place(data, rng)
    data[other : other + len(block)] = block


def _number(data: bytearray, place: int, rng: Random) -> None:
    """Overwrite a possible length, offset or time field: 1, 2, 4 or 8 aligned bytes get a boundary value."""
    width = rng.choice((1, 2, 4, 8))
    bits = 8 * width
    value = rng.choice(
        (0, 1, 2, 4, 255, len(data), 1 << 31, (1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1)
    )
    place -= place % width
    stop = min(place + width, len(data))
    data[place:stop] = (value % (1 << bits)).to_bytes(width, rng.choice(("little", "big")))[: stop - place]


def _digit(data: bytearray, place: int, rng: Random) -> None:
    """Replace one digit of a number in a text, header or description."""
    digits = [i for i, byte in enumerate(data[place : place + 60], place) if 0x30 <= byte <= 0x39]
    if digits:
        data[rng.choice(digits)] = rng.choice(b"0123456789-+.,eE x;\n")


DAMAGE: tuple[Callable[[bytearray, int, Random], None], ...] = (
    _flip_bits,
    _flip_bits,
    _overwrite,
    _fill,
    _truncate,
    _insert,
    _repeat,
    _drop,
    _move,
    _number,
    _number,
    _digit,
)
