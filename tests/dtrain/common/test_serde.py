"""Values as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from dtrain.common.serde import to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    names: tuple[str, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    number: float | None = None


def test_plain_data_is_that_of_asdict_and_no_part_of_the_value() -> None:
    one = Inner(("a", "b"), {"nested": {"list": [1, {"deep": (2, 3)}]}})
    value = Outer(one, (one, Inner((), {})))
    assert to_dict(value) == dataclasses.asdict(value)
    to_dict(value)["inner"]["options"]["nested"]["list"].append(4)
    assert one.options == {"nested": {"list": [1, {"deep": (2, 3)}]}}
