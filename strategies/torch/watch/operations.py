"""Every operation of a step with digests of its tensors, as PyTorch dispatches them. Importing this module imports no framework."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dtrain.api.operations import Operation
from dtrain.common.files import digest

NOT_TOLD = frozenset({"c10d", "_c10d_functional", "fsdp", "inductor", "profiler"})
"""Namespaces of operations that move memory or wait: a collective's tensors may not be there yet when it returns."""
NOT_FILLED = ("empty", "resize", "set_")
"""In the names of operations that give memory as it is."""
MOST_NUMBERS = 32
DIGEST_LETTERS = 16

_hidden = False


@contextmanager
def hidden() -> Iterator[None]:
    """Around operations that are not told, in whatever thread: the first step of an attempt does them differently from others."""
    global _hidden
    _hidden = True
    try:
        yield
    finally:
        _hidden = False


class Operations:
    """Logs operations, with the pass of the step that they belong to."""

    def __init__(self) -> None:
        self._number: int | None = None

    @contextmanager
    def passing(self, number: int) -> Iterator[None]:
        """Around the forward and backward pass of this number (from 0)."""
        self._number = number
        yield
        self._number = None

    @contextmanager
    def told(self, tell: Callable[[Operation], None]) -> Iterator[None]:
        from torch.utils._python_dispatch import TorchDispatchMode

        log = self

        class Mode(TorchDispatchMode):  # type: ignore[misc]
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
            ) -> Any:
                if _hidden or not _counts(func):
                    return func(*args, **(kwargs or {}))
                tensors, numbers = _taken_apart((args, kwargs))
                given = _digest(tensors)
                result = func(*args, **(kwargs or {}))
                made = _taken_apart((result, _changed(func, args, kwargs or {})))
                tell(Operation(str(func), log._phase(), log._number, given, tuple(numbers), _digest(*made)))
                return result

        with Mode():
            yield

    def _phase(self) -> str:
        import torch

        node = torch._C._current_autograd_node()
        if node is not None:
            return f"backward pass ({node.name()})"
        if torch._C._current_graph_task_id() != -1:
            return "backward pass"
        return "" if self._number is None else "forward pass"


def _counts(func: Any) -> bool:
    """Whether an operation computes something: views compute nothing, and may show memory that is still to be filled."""
    aliases = [one.alias_info for one in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return not is_view and func.namespace not in NOT_TOLD and not any(part in str(func) for part in NOT_FILLED)


def _changed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    found = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return found


def _taken_apart(values: Any) -> tuple[list[Any], list[str]]:
    """The tensors in nested values, and the numbers and texts as text."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves(values)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    numbers = [repr(leaf) for leaf in leaves if isinstance(leaf, bool | int | float | complex | str)]
    return tensors, numbers[:MOST_NUMBERS]


def _digest(tensors: Iterable[Any], numbers: Iterable[str] = ()) -> str:
    """Return the digest of the bits, of this process's part of a sharded tensor."""
    found = digest()
    for tensor in tensors:
        local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
        found.update(f"{local.dtype}{tuple(local.shape)}".encode())
        if not local.is_meta and not local.is_quantized and str(local.layout) == "torch.strided":
            _add_bits(found, local)
    for number in numbers:
        found.update(number.encode())
    return str(found.hexdigest()[:DIGEST_LETTERS])


def _add_bits(whole_digest: Any, tensor: Any) -> None:
    """Read from the tensor's own memory: one that NumPy has seen could not be resized any more, which FSDP does. BLAKE3 takes no
    array of ctypes as it is."""
    whole = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    if size := whole.numel() * whole.element_size():
        whole_digest.update(memoryview((ctypes.c_char * size).from_address(whole.data_ptr())).cast("B"))
