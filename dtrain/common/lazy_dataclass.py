"""`dataclass` of the standard library for classes that most processes never use: their methods are compiled at the first use.

Compiling them takes a fifth to half a millisecond a class, and a start imports hundreds of them.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(plain: type | None = None, /, **options: bool) -> Any:
        """Decorate a class; the options are those of `dataclasses.dataclass`, without `slots`."""

        def decorate(cls: type) -> type:
            later = _Later(cls, options)
            cls.__dataclass_fields__ = later
            cls.__new__ = staticmethod(later.new)
            return cls

        return decorate(plain) if plain else decorate


_lock = threading.RLock()


class _Later:
    """Stands for `__dataclass_fields__`, which all of `dataclasses` asks for, until the class is complete."""

    def __init__(self, cls: type, options: dict[str, bool]) -> None:
        self._cls = cls
        self._options = options
        self._complete = False

    def __get__(self, instance: object, owner: Any) -> Any:
        self._finish()
        return owner.__dataclass_fields__

    def new(self, cls: type, *_: object, **__: object) -> Any:
        """Make an instance, whose `__init__` there is then."""
        if not self._complete:
            self._finish()
        return object.__new__(cls)

    def _finish(self) -> None:
        with _lock:
            if not self._complete:
                dataclasses.dataclass(**self._options)(self._cls)
                self._complete = True
