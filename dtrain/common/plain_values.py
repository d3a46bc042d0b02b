"""The values in a checkpoint that are no tensors, as JSON: plain values and the types listed here. Reading them runs no program.

An object of JSON stands for a value of another type than JSON knows: its only key names the type. Importing this module imports no
framework.
"""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from dtrain.common.errors import UserError

WHAT_TO_DO = "Keep plain values, lists, dicts and tensors in state_dict(), not objects of classes of your own."
Pairs = list[tuple[Any, Any]]


class Unknown(Exception):
    """A value, or a name of a type, that checkpoints do not hold; the message names it."""


def encoded(value: Any) -> Any:
    """A value as JSON; raises `Unknown`."""
    kind = type(value)
    if kind in (bool, int, str, type(None)) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encoded(part) for part in value]
    name = _name(kind)
    if name not in TYPES:
        raise Unknown(f"{kind.__module__}.{kind.__qualname__}")
    return {name: TYPES[name][0](value)}


def decoded(data: Any) -> Any:
    """The value again; raises `Unknown` for a type that is not on the list, `ValueError` for what `encoded` never makes."""
    if isinstance(data, list):
        return [decoded(part) for part in data]
    if not isinstance(data, dict):
        return data
    try:
        ((name, content),) = data.items()
        if name not in TYPES:
            raise Unknown(name)
        return TYPES[name][1](content)
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def require_storable(state: Any, name: str) -> None:
    """Raise `UserError` if a checkpoint would hold what is not read back: better now than after a failure."""
    try:
        encoded(state)
    except Unknown as error:
        raise UserError(
            f"the state_dict of {name} holds an object of {error}, which checkpoints do not: {WHAT_TO_DO}"
        ) from None
    except RecursionError:
        raise UserError(f"the state_dict of {name} is nested too deeply, or holds itself: {WHAT_TO_DO}") from None


def _name(kind: type) -> str:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.generic):
        return "numpy.scalar"
    if numpy is not None and issubclass(kind, numpy.dtype):
        return "numpy.dtype"
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ALIASES.get(name, name)


def _sequence(make: Callable[[list[Any]], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return lambda value: [encoded(part) for part in value], lambda data: make([decoded(part) for part in data])


def _pairs(value: Any) -> list[list[Any]]:
    return [[encoded(key), encoded(part)] for key, part in value.items()]


def _read_pairs(data: Any) -> Pairs:
    return [(decoded(key), decoded(part)) for key, part in data]


def _mapping(make: Callable[[Pairs], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return _pairs, lambda data: make(_read_pairs(data))


def _text(
    make: Callable[[str], Any], say: Callable[[Any], str] = str
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return say, make


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _of_defaultdict(value: collections.defaultdict[Any, Any]) -> Any:
    if value.default_factory not in (None, set):
        raise Unknown(f"a defaultdict of {value.default_factory}")
    return [value.default_factory is set, _pairs(value)]


def _descr(dtype: Any) -> Any:
    import numpy as np

    if dtype.hasobject or (dtype.kind == "V" and not dtype.names):
        raise Unknown(f"a numpy array of {dtype}")
    return encoded(np.lib.format.dtype_to_descr(dtype))


def _dtype(data: Any) -> Any:
    import numpy as np

    return np.lib.format.descr_to_dtype(decoded(data))


def _of_array(value: Any) -> Any:
    import numpy as np

    return [_descr(value.dtype), list(value.shape), _base64(np.ascontiguousarray(value).tobytes())]


def _array(data: Any) -> Any:
    import numpy as np

    descr, shape, content = data
    return np.frombuffer(bytearray(base64.b64decode(content)), _dtype(descr)).reshape(shape)


TYPES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "float": _text(float, repr),
    "complex": (lambda value: [encoded(value.real), encoded(value.imag)], lambda data: complex(*map(decoded, data))),
    "bytes": (_base64, base64.b64decode),
    "bytearray": (_base64, lambda data: bytearray(base64.b64decode(data))),
    "tuple": _sequence(tuple),
    "set": _sequence(set),
    "frozenset": _sequence(frozenset),
    "slice": (lambda value: encoded([value.start, value.stop, value.step]), lambda data: slice(*decoded(data))),
    "range": (lambda value: [value.start, value.stop, value.step], lambda data: range(*data)),
    "dict": _mapping(dict),
    "collections.OrderedDict": _mapping(collections.OrderedDict),
    "collections.Counter": _mapping(lambda pairs: collections.Counter(dict(pairs))),
    "collections.defaultdict": (
        _of_defaultdict, lambda data: collections.defaultdict(set if data[0] else None, _read_pairs(data[1])),
    ),
    "collections.deque": (
        lambda value: [encoded(list(value)), value.maxlen], lambda data: collections.deque(decoded(data[0]), data[1]),
    ),
    "datetime.date": _text(datetime.date.fromisoformat),
    "datetime.time": _text(datetime.time.fromisoformat),
    "datetime.datetime": _text(datetime.datetime.fromisoformat),
    "datetime.timedelta": (
        lambda value: [value.days, value.seconds, value.microseconds], lambda data: datetime.timedelta(*data),
    ),
    "datetime.timezone": (
        lambda value: value.utcoffset(None) / datetime.timedelta(microseconds=1),
        lambda data: datetime.timezone(datetime.timedelta(microseconds=data)),
    ),
    "decimal.Decimal": _text(decimal.Decimal),
    "fractions.Fraction": _text(fractions.Fraction),
    "pathlib.PosixPath": _text(pathlib.Path),
    "pathlib.PurePosixPath": _text(pathlib.PurePosixPath),
    "numpy.ndarray": (_of_array, _array),
    "numpy.scalar": (lambda value: _of_array(value), lambda data: _array(data)[()]),
    "numpy.dtype": (_descr, _dtype),
}  # fmt: skip
"""Name of a type → how a value of it is made JSON, and how it is made of that again; strategies add those of their framework."""
ALIASES: dict[str, str] = {}
"""Name of a type whose values are written as those of another."""
