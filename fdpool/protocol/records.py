"""A log record as it travels: plain data, in no more bytes than one datagram carries."""

from __future__ import annotations

import io
import pickle
from operator import itemgetter
from typing import Any, Final

from fdpool.errors import RemoteProtocolError
from fdpool.protocol.datagram import MAX_INLINE_BYTES
from fdpool.protocol.tasks import HEADER_BYTES

MAX_RECORD_BYTES: Final = MAX_INLINE_BYTES - HEADER_BYTES

Fields = dict[str, Any]
"""What a record consists of, by the names of its attributes."""

_REQUIRED: Final[dict[str, type[Any]]] = {"name": str, "levelno": int, "levelname": str, "msg": str, "created": float}

_PLAIN: Final = frozenset(
    {
        ("datetime", "date"),
        ("datetime", "datetime"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib._local", "PosixPath"),
        ("pathlib._local", "PurePosixPath"),
        ("uuid", "UUID"),
    }
)
"""Classes that travel as themselves, beside what pickle knows without a class: loading them runs nobody's code."""

_NOTE_BYTES: Final = 128
"""Room for the note that takes the place of what was cut off."""
_SHORTEST_CUT: Final = 256
"""Texts of fewer bytes are not worth cutting."""


def encode_record(fields: Fields) -> bytes:
    """Lay out a record; what does not fit is left out, and a note says how much that is.

    Values that are not plain data become it: a string or number of a class of its own its value, anything else its
    `repr()`. Nobody's code runs when the record is loaded.

    Raises:
      TypeError, ValueError: a number that every record has is none.
    """
    if not _is_record(fields):
        fields = {str.__str__(str(name)): value for name, value in fields.items()}
        fields |= {name: _as_plain(kind(fields.get(name))) for name, kind in _REQUIRED.items()}
    try:
        body = _dump(fields)
    except Exception:
        fields = {name: _plain(value) for name, value in fields.items()}
        body = _dump(fields)
    return body if len(body) <= MAX_RECORD_BYTES else _cut(fields)


def decode_record(body: bytes | memoryview) -> Fields:
    """Return what `encode_record` was given.

    Raises:
      RemoteProtocolError: it is not what `encode_record` makes.
    """
    try:
        fields = _PlainUnpickler(io.BytesIO(body)).load()
    except Exception as exc:
        # A pickle that is damaged may make pickle, or one of the plain classes, raise anything.
        raise RemoteProtocolError(f"a log record cannot be loaded: {exc!r}", bytes(body)) from exc
    if not isinstance(fields, dict) or not _is_record(fields):
        raise RemoteProtocolError(
            f"a log record lacks one of {', '.join(_REQUIRED)}, or it is of another type", bytes(body)
        )
    return fields


def _is_record(fields: Fields) -> bool:
    """Whether all attributes have names, and those that every record has are what they should be."""
    return all(type(name) is str for name in fields) and all(
        type(fields.get(name)) is kind for name, kind in _REQUIRED.items()
    )


class _PlainPickler(pickle.Pickler):
    """Pickles plain data, and refuses the rest."""

    def reducer_override(self, value: Any) -> Any:
        kind = value if isinstance(value, type) else type(value)
        if (kind.__module__, kind.__qualname__) in _PLAIN:
            return NotImplemented
        raise pickle.PicklingError(f"a {kind.__qualname__} is not plain data")


class _PlainUnpickler(pickle.Unpickler):
    """Loads plain data, and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


def _dump(value: object) -> bytes:
    file = io.BytesIO()
    _PlainPickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _plain(value: Any) -> object:
    try:
        _dump(value)
    except Exception:
        return _as_plain(value)
    return value


def _as_plain(value: Any) -> object:
    """Return something plain in the place of *value*. Raises nothing that is an `Exception`."""
    # By the methods of the plain classes themselves: those of a subclass may do anything.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    try:
        return str.__str__(repr(value))
    except Exception as exc:
        return f"<a {type(value).__qualname__} whose repr() raised {type(exc).__name__}>"


def _as_text(value: Any) -> str:
    try:
        return str(_as_plain(value))
    except ValueError:
        # Python writes no int of more than some thousand digits, see sys.set_int_max_str_digits.
        return "<an int of too many digits>"


def _cut(fields: Fields) -> bytes:
    """Lay out a record that is too long, leaving out the ends of its longest texts."""
    texts = {name: _as_text(value) for name, value in fields.items()}
    sizes = {name: len(text.encode("utf-8", "surrogatepass")) for name, text in texts.items()}
    fields = dict(fields)
    for name, size in sorted(sizes.items(), key=itemgetter(1), reverse=True):
        if size < _SHORTEST_CUT:
            break
        fields[name] = texts[name]
        excess = len(_dump(fields)) - MAX_RECORD_BYTES
        if excess > 0:
            fields[name] = _shortened(texts[name], max(size - excess - _NOTE_BYTES, 0))
        body = _dump(fields)
        if len(body) <= MAX_RECORD_BYTES:
            return body
    # Thousands of attributes, each of them short.
    kept = {name: fields[name] for name in _REQUIRED}
    kept["msg"] += f" [… {len(fields) - len(kept)} attributes of this record are missing: there is no room for them]"
    return _dump(kept)


def _shortened(text: str, size: int) -> str:
    """Return what of *text* fits into *size* bytes, and a note about the rest."""
    kept = text.encode("utf-8", "surrogatepass")[:size].decode("utf-8", "ignore")
    return (
        f"{kept} [… {len(text) - len(kept)} more characters are missing: a record travels in {MAX_RECORD_BYTES} bytes]"
    )
