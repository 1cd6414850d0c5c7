"""The binary files of TensorBoard and W&B, read without either of them.

They may be installed for the script alone, in another environment. Both are protocol buffer
messages, of which a few fields matter: `tensorboard/compat/proto/event.proto` in TensorFlow's
record format, and `wandb_internal.proto` in LevelDB's log format.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Values = tuple[int | None, dict[str, float]]
"""A step, and numbers by name."""

MAX_RECORD: Final = 1 << 20  # bytes; what is longer is a picture or a sound
MAX_READ: Final = 8 << 20  # bytes in one look

_BLOCK: Final = 1 << 15
_WANDB_HEADER: Final = 7
_FIRST, _LAST = (1, 2), (1, 4)  # kinds of pieces that begin and end a record
_VARINT, _FIXED64, _TEXT, _FIXED32 = 0, 1, 2, 5


class EventFile:
    """One `events.out.tfevents.…`: length, checksum, event, checksum, and so on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def news(self) -> Iterator[Values]:
        """Yield the scalars that were written since the last look."""
        left = MAX_READ
        with self._path.open("rb") as file:
            size = self._path.stat().st_size
            while left > 0:
                file.seek(self._at)
                head = file.read(12)
                if len(head) < len(bytes(12)):
                    return
                (length,) = struct.unpack_from("<Q", head)
                if self._at + 16 + length > size:  # not written to its end so far
                    return
                self._at += 16 + length
                left -= 16
                if length <= MAX_RECORD:
                    left -= length
                    yield from _event(file.read(length))


class WandbFile:
    """One `run-….wandb` of W&B's offline mode: records in pieces that fit into blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = _WANDB_HEADER
        self._parts: list[bytes] = []

    def news(self) -> Iterator[Values]:
        """Yield the history that was written since the last look."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read(MAX_READ)
        at = 0
        while True:
            room = _BLOCK - (self._at + at) % _BLOCK
            if room < _WANDB_HEADER:  # the end of a block is padded
                at += room
                continue
            if at + _WANDB_HEADER > len(data):
                break
            length, kind = struct.unpack_from("<HB", data, at + 4)
            end = at + _WANDB_HEADER + length
            if end > len(data):
                break
            piece, at = data[at + _WANDB_HEADER : end], end
            if kind in _FIRST:
                self._parts = []
            self._parts.append(piece)
            if kind in _LAST:
                record, self._parts = b"".join(self._parts), []
                yield from _history(record)
        self._at += min(at, len(data))


def _event(raw: bytes) -> Iterator[Values]:
    """Yield an event's scalars: `simple_value`, or a tensor with one number."""
    step, found = 0, dict[str, float]()
    try:
        for field, value in _fields(raw):
            if field == 2:
                step = value
            elif field == 5:
                for _, one in _fields(value):
                    found |= _scalar(one)
    except (ValueError, struct.error, IndexError, TypeError, UnicodeDecodeError):
        return  # no event: a file of that name that is none
    if found:
        yield step, found


def _scalar(raw: bytes) -> dict[str, float]:
    tag, number = "", None
    for field, value in _fields(raw):
        if field == 1:
            tag = value.decode()
        elif field == 2:
            (number,) = struct.unpack("<f", value)
        elif field == 8:
            number = _tensor(value)
    return {} if number is None else {tag: number}


def _tensor(raw: bytes) -> float | None:
    """Return the number of a tensor that is one: a float or a double, as TensorFlow 2 has it."""
    formats, kind, content = {1: "<f", 2: "<d"}, 0, b""
    for field, value in _fields(raw):
        if field == 1:
            kind = value
        elif field in (4, 5, 6):
            content = value
    form = formats.get(kind, "<f")
    return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else None


def _history(raw: bytes) -> Iterator[Values]:
    """Yield what `run.log` said: items of a key, and a value in JSON."""
    step, found = None, dict[str, float]()
    try:
        for field, value in _fields(raw):
            if field != 2:
                continue
            for inner, one in _fields(value):
                if inner == 1:
                    found |= _item(one)
                elif inner == 2:
                    step = next((number for at, number in _fields(one) if at == 1), 0)
    except (ValueError, struct.error, IndexError, TypeError, UnicodeDecodeError):
        return
    said = found.pop("_step", None)
    found = {name: number for name, number in found.items() if not name.startswith("_")}
    if found:
        yield step if said is None else int(said), found


def _item(raw: bytes) -> dict[str, float]:
    keys: list[str] = []
    number = None
    for field, value in _fields(raw):
        if field in (1, 2) and value:
            keys.append(value.decode())
        elif field == 16:
            number = json.loads(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not keys:
        return {}
    return {"/".join(keys): float(number)}


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Yield a message's fields: numbers of varints, bytes of all others."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield field, value
            continue
        if kind == _TEXT:
            length, at = _varint(raw, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no such kind of field")
        if at + length > len(raw):
            raise ValueError("a field goes beyond its message")
        yield field, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = raw[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
