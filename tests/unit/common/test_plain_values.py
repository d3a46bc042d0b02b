"""The values of a checkpoint that are no tensors come back as they were, from JSON that can name nothing but their types."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import os
import pathlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.common.errors import UserError
from dtrain.common.plain_values import TYPES, Unknown, decoded, encoded, require_storable
from dtrain.strategies import torch_values as torch_values

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text()) | st.none() | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple) | st.frozensets(KEYS),
    max_leaves=20,
)


def there_and_back(value: Any) -> Any:
    return decoded(json.loads(json.dumps(encoded(value), allow_nan=False)))


def told(value: Any) -> Any:
    """What tells values apart, NaN and the order of a set aside."""
    if isinstance(value, list | tuple):
        return type(value), [told(part) for part in value]
    if isinstance(value, dict):
        return [(told(key), told(part)) for key, part in value.items()]
    return (frozenset, sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


@settings(deadline=None)
@given(VALUES)
def test_nested_values_come_back(value: Any) -> None:
    assert told(there_and_back(value)) == told(value)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"x"), {1, 2}, slice(1, None, 2), range(3, 9, 2), collections.OrderedDict(b=1, a=2),
        collections.Counter("aab"), collections.deque([1, (2,)], 5), collections.defaultdict(None, {1: 2}),
        datetime.date(2026, 1, 2), datetime.time(1, 2, 3), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.timezone.utc),
        datetime.timedelta(3, 4, 5), datetime.timezone(datetime.timedelta(hours=-5)), decimal.Decimal("1.10"),
        fractions.Fraction(1, 3), pathlib.Path("/a/b"), np.float32(1.5), np.int64(-3), np.dtype("<f4"), np.datetime64("2026-01-02"),
        np.random.default_rng(0).bit_generator.state, torch.bfloat16, torch.Size([1, 2]), torch.device("cpu"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_types_that_states_are_made_of_come_back(value: Any) -> None:
    found = there_and_back(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype="<i2").reshape(2, 3), np.array(3.5), np.zeros((0, 2)), np.array(["a", "bc"]),
     np.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f8")]), np.asfortranarray(np.arange(6.0).reshape(2, 3))],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
def test_arrays_come_back_to_the_last_bit(array: Any) -> None:
    found = there_and_back(array)
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(1.5), torch.arange(4).reshape(2, 2), torch.zeros(0, 3), torch.tensor([1.0], dtype=torch.bfloat16)],
)
def test_tensors_inside_of_tuples_come_back(tensor: Any) -> None:
    (found,) = decoded(json.loads(json.dumps(encoded((tensor,)))))
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


class Own:
    """Of the user's."""


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "value",
    [Own, Own(), Hostile(), print, lambda: 0, np.array([object()]), collections.namedtuple("Point", "x")(1)],  # type: ignore[arg-type]
)
def test_what_would_not_be_read_back_is_not_saved(value: Any) -> None:
    with pytest.raises(UserError, match="the state_dict of 'ema' holds an object of"):
        require_storable({"value": [value]}, "'ema'")


def test_a_state_that_holds_itself_is_not_saved() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(UserError, match="holds itself"):
        require_storable(state, "'ema'")


@settings(deadline=None)
@given(
    st.recursive(
        SCALARS.filter(lambda value: not isinstance(value, bytes | complex)),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*TYPES, "os.system", "builtins.eval"]), inner),
    )
)
def test_whatever_a_file_says_is_a_value_or_refused(data: Any) -> None:
    with suppress(Unknown, ValueError):
        decoded(data)
