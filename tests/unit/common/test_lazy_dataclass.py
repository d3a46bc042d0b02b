"""Classes whose methods are compiled at the first use behave as dataclasses from the start."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from typing import ClassVar

import pytest

from dtrain.common.lazy_dataclass import dataclass


def test_the_first_use_may_be_any(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Base:
        shared: ClassVar[int] = 7
        one: int = 1

    @dataclass(frozen=True)
    class Part(Base):
        many: list[int] = dataclasses.field(default_factory=list)

    assert [field.name for field in dataclasses.fields(Part)] == ["one", "many"], "the base is completed, too"
    assert Part(2) == Part(2, []) != Part(3)
    assert repr(Base()).endswith("Base(one=1)")
    assert dataclasses.replace(Part(2), many=[5]) == Part(2, [5])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Base().one = 2  # type: ignore[misc]


@dataclass
class Counted:
    number: int = 0


def test_what_is_unpickled_before_the_first_instance_is_complete() -> None:
    assert pickle.loads(b"\x80\x04" + pickle.dumps(Counted(3))[2:]) == Counted(3) == copy.copy(Counted(3))
    assert dataclasses.is_dataclass(Counted)


def test_many_threads_may_be_first() -> None:
    wrong: list[object] = []
    for _ in range(50):

        @dataclass(frozen=True)
        class Fresh:
            number: int
            text: str = ""

        def make(cls: type[Fresh] = Fresh) -> None:
            try:
                assert cls(1).number == 1
            except Exception as error:  # noqa: BLE001  the test shows it
                wrong.append(error)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
