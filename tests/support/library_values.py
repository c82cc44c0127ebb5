"""Big values of the libraries that pools are used with most: made here or in a worker, compared where they arrive."""

from __future__ import annotations

import array
import importlib
import sys
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH = 60_000
"""Elements of arrays: enough for a block of memory, whatever they are."""

ROWS = 12_000
"""Rows of tables, which are compared value by value."""


class Tagged(np.ndarray[Any, Any]):
    """An array that knows something more, as NumPy's documentation has it."""

    tag: str

    def __array_finalize__(self, other: object) -> None:
        self.tag = getattr(other, "tag", "")

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        rebuild, arguments, state = reduced
        return rebuild, arguments, (self.tag, state)

    def __setstate__(self, state: Any) -> None:
        self.tag, inherited = state
        super().__setstate__(inherited)


def make(name: str) -> Any:
    """Return the value of that name, always the same."""
    return MAKERS[name]()


def is_as_made(name: str, value: Any) -> bool:
    """Whether *value* is what `make` makes, with everything that belongs to it."""
    return bool(facts(value) == facts(make(name)))


def identity(value: Any) -> Any:
    return value


def facts(value: Any) -> Any:
    """Return what makes *value* what it is, to be compared by `==`."""
    if isinstance(value, np.ndarray):
        return _array_facts(value)
    if isinstance(value, array.array):
        return value.typecode, value.tobytes()
    library = type(value).__module__.partition(".")[0]
    return {"pandas": _pandas_facts, "pyarrow": _pyarrow_facts, "PIL": _image_facts, "torch": _torch_facts}[library](
        value
    )


def _array_facts(value: np.ndarray[Any, Any]) -> Any:
    # Objects and padding have bytes that say nothing.
    has_values_only = value.dtype.hasobject or value.dtype.kind == "T" or value.dtype == np.longdouble
    elements = value.tolist() if has_values_only else value.tobytes()
    # Which way the elements lie in memory; of an array with gaps these are gone, unless others can map what it is in.
    order = np.argsort(np.abs(value.strides), kind="stable").tolist() if value.size else None
    return type(value), value.dtype, value.shape, order, value.flags.writeable, getattr(value, "tag", None), elements


def _pandas_facts(value: Any) -> Any:
    frame = value.to_frame() if value.ndim == 1 else value
    columns = [(name, str(column.dtype), column.tolist()) for name, column in frame.astype(object).items()]
    return type(value), [str(kind) for kind in frame.dtypes], repr(frame.index), repr(columns)


def _pyarrow_facts(value: Any) -> Any:
    shown = value.to_pybytes() if hasattr(value, "to_pybytes") else value.to_pylist()
    return type(value), str(getattr(value, "schema", getattr(value, "type", ""))), shown


def _image_facts(value: Any) -> Any:
    return type(value).__name__, value.mode, value.size, value.getpalette(), value.tobytes()


def _torch_facts(value: Any) -> Any:
    dense = value.detach().to_dense() if value.is_sparse else value.detach()
    strides = None if value.is_sparse else value.stride()
    return type(value), value.dtype, tuple(value.shape), strides, value.requires_grad, dense.tolist()


def _library(name: str) -> Any:
    return importlib.import_module(name)


def _numbers() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).random(LENGTH)


def _tagged() -> Tagged:
    value = _numbers().view(Tagged)
    value.tag = "calibrated"
    return value


def _read_only() -> np.ndarray[Any, Any]:
    value = _numbers()
    value.flags.writeable = False
    return value


def _columns() -> dict[str, Any]:
    pandas = _library("pandas")
    return {
        "number": _numbers()[:ROWS],
        "text": [f"row {i % 100}" for i in range(ROWS)],
        "category": pandas.Categorical(["up", "down", "up"] * (ROWS // 3)),
        "moment": pandas.date_range("2026-01-01", periods=ROWS, freq="min", tz="Europe/Paris"),
        "missing": pandas.array([1, None] * (ROWS // 2), dtype="Int64"),
    }


def _frame() -> Any:
    return _library("pandas").DataFrame(_columns())


def _arrow() -> types.ModuleType:
    return _library("pyarrow")  # type: ignore[no-any-return]


def _table() -> Any:
    columns = {
        "number": _numbers()[:ROWS],
        "text": [None if i % 7 == 0 else f"row {i}" for i in range(ROWS)],
        "lists": [[i, None, i] for i in range(ROWS)],
        "category": _arrow().array(["up", "down", None] * (ROWS // 3)).dictionary_encode(),
    }
    return _arrow().table(columns)


def _array(code: str) -> array.array[Any]:
    return array.array(code, range(100)) * (LENGTH // 100)


def _image(mode: str) -> Any:
    pixels = np.random.default_rng(6).integers(0, 256, (200, 300, 3), "u1")
    return _library("PIL.Image").fromarray(pixels).convert(mode)


def _tensor() -> Any:
    return _library("torch").from_numpy(_numbers().reshape(300, 200))


MAKERS: dict[str, Callable[[], Any]] = {
    "numpy subclass": _tagged,
    "numpy record array": lambda: np.rec.array(np.zeros(LENGTH, [("a", "<i4"), ("b", ">f8", 2), ("c", "S5")])),
    "numpy nested structure": lambda: np.ones(LENGTH, [("a", [("b", "u1"), ("c", "f4", (2, 2))]), ("d", "M8[ms]")]),
    "numpy structure with objects": lambda: np.array([(1, {"a": [2]})] * 5000, [("a", "i4"), ("b", object)]),
    "numpy objects": lambda: np.array([{"a": i} for i in range(LENGTH)], dtype=object),
    "numpy strings": lambda: np.array([f"row {i}" for i in range(LENGTH)]),
    "numpy Fortran order": lambda: np.asfortranarray(_numbers().reshape(30, 40, 50)),
    "numpy transposed": lambda: _numbers().reshape(30, 40, 50).transpose(2, 0, 1),
    "numpy reversed slice": lambda: _numbers().reshape(200, 300)[::-1, 5:250:3],
    "numpy zero size": lambda: np.zeros((0, LENGTH, 3), order="F"),
    "numpy zero item size": lambda: np.zeros(LENGTH, "V0"),
    "numpy no dimensions": lambda: np.array(1j),
    "numpy big endian": lambda: np.arange(LENGTH, dtype=">i4"),
    "numpy long double": lambda: np.arange(LENGTH, dtype="longdouble"),
    "numpy read-only": _read_only,
    "pandas frame": _frame,
    "pandas series": lambda: _frame().set_index(["category", "text"])["number"],
    "pandas slice": lambda: _frame().iloc[100:-100:2],
    "pyarrow table": _table,
    "pyarrow slice": lambda: _table().slice(100, 10_000),
    "pyarrow batch": lambda: _table().to_batches()[0],
    "pyarrow chunks": lambda: _arrow().chunked_array([_numbers(), _numbers()]),
    "pyarrow buffer": lambda: _arrow().py_buffer(bytes(range(250)) * 400),
    "pillow colours": lambda: _image("RGBA"),
    "pillow palette": lambda: _image("P"),
    "pillow floats": lambda: _image("F"),
    "torch tensor": _tensor,
    "torch strided": lambda: _tensor()[10:200, ::3],
    "torch transposed": lambda: _tensor().t(),
    "torch half precision": lambda: _tensor().bfloat16(),
    "torch with gradient": lambda: _tensor().requires_grad_(),
    "torch parameter": lambda: _library("torch").nn.Parameter(_tensor()),
    "torch sparse": lambda: _tensor().relu().mul(_tensor() > 0.9).to_sparse(),
    "torch zero size": lambda: _tensor()[:0],
    **{
        f"array of {code}": partial(_array, code)
        for code in ("b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "f", "d")
    },
}
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    MAKERS["numpy variable strings"] = lambda: np.array(["a", "b" * 100] * LENGTH, np.dtypes.StringDType())
if sys.version_info >= (3, 13):
    MAKERS["array of w"] = lambda: array.array("w", "text" * LENGTH)
