"""Adds the types of torch to the values that checkpoints hold, of any framework: a loader of torch may feed Keras.

Importing this module imports no framework.
"""

from __future__ import annotations

import base64
import math
from typing import Any

from dtrain.common.plain_values import ALIASES, TYPES, Unknown


def _of_tensor(value: Any) -> Any:
    import torch

    host = value.detach().cpu().contiguous()
    content = host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""
    return [str(value.dtype), list(value.shape), base64.b64encode(content).decode()]


def _tensor(data: Any) -> Any:
    import torch

    dtype, shape, content = data
    kind, count = _dtype(dtype), math.prod(shape)
    if len(content := base64.b64decode(content)) != count * kind.itemsize or min(shape, default=0) < 0:
        raise ValueError("a tensor of another size")
    return torch.frombuffer(bytearray(content), dtype=kind).view(shape) if count else torch.empty(shape, dtype=kind)


def _dtype(name: str) -> Any:
    import torch

    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise Unknown(name)
    return found


def _size(data: Any) -> Any:
    import torch

    return torch.Size(data)


def _device(data: Any) -> Any:
    import torch

    return torch.device(data)


TYPES |= {
    "torch.Tensor": (_of_tensor, _tensor),
    "torch.Size": (list, _size),
    "torch.dtype": (str, _dtype),
    "torch.device": (str, _device),
}
ALIASES["torch.nn.parameter.Parameter"] = "torch.Tensor"
