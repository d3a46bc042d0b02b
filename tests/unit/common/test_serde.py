"""Values as plain data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dtrain.common.serde import from_dict, to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    names: tuple[str, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    number: float | None = None
    named: dict[str, Inner] = dataclasses.field(default_factory=dict)
    perhaps: Inner | None = None
    several: tuple[Inner, ...] | None = None
    words: str | tuple[str, ...] = ""


def test_plain_data_is_that_of_asdict_and_no_part_of_the_value() -> None:
    one = Inner(("a", "b"), {"nested": {"list": [1, {"deep": (2, 3)}]}})
    value = Outer(one, (one, Inner((), {})))
    assert to_dict(value) == dataclasses.asdict(value)
    to_dict(value)["inner"]["options"]["nested"]["list"].append(4)
    assert one.options == {"nested": {"list": [1, {"deep": (2, 3)}]}}


def test_values_come_back_from_json_and_a_key_that_is_unknown_is_an_error() -> None:
    one = Inner(("a", "b"), {"n": 1})
    whole = Outer(one, (one, one), 1.5, {"x": one}, one, (one,), ("a",))
    for value in whole, Outer(one, (), words="ab"):
        assert from_dict(Outer, json.loads(json.dumps(to_dict(value)))) == value
    with pytest.raises(TypeError):
        from_dict(Inner, {"names": [], "options": {}, "colour": 1})
