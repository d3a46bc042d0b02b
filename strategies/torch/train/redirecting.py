"""A DistributedDataParallel model with the methods and attributes of the user's own. Importing this module imports no framework."""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import Any

from dtrain.common.errors import UserError


@cache
def redirecting() -> Any:
    """The class; it needs torch."""
    from torch.nn.parallel import DistributedDataParallel

    class Redirecting(DistributedDataParallel):  # type: ignore[misc]
        """Runs a method of the user's module as its forward pass, so that the gradients of what it computes are averaged, too."""

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                found = getattr(super().__getattr__("module"), name)
                return partial(self._as_forward, found) if inspect.ismethod(found) else found

        def join_hook(self, **_named: Any) -> Any:
            """Refuse torch's `Join`: the steps of a run are those of all its ranks."""
            raise UserError(
                "torch's Join lets a rank stop before the others, whose reports, checkpoints and restarts are of the same step on every rank",
                "Give each rank as many batches: context.batches(data) does, or context.total_steps of data of your own.",
            )

        def _as_forward(self, method: Any, *args: Any, **named: Any) -> Any:
            module = self.module
            own = module.__dict__.get("forward")

            def forward(*inner: Any, **inner_named: Any) -> Any:
                restore()  # the method may call the module itself
                return method(*inner, **inner_named)

            def restore() -> None:
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = own

            module.forward = forward
            try:
                return self(*args, **named)
            finally:
                restore()

    Redirecting.__name__ = Redirecting.__qualname__ = DistributedDataParallel.__name__
    return Redirecting
