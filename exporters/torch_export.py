"""`torch.export` of a trained model, for all the forms that begin with it, and its refusals in the words of the model's author.

Importing this module imports no framework.
"""

from __future__ import annotations

import re
from typing import Any

from dtrain.api.exporter import ExportError, TrainedModel
from dtrain.common import source_files

from .error_text import first_line

OPERATOR = re.compile(r"\b((?:aten|prims|torchvision|_c10d_functional|[a-z_]\w*)(?:::|\.)[a-z_]\w*(?:\.[a-z_]\w*)?)")
WHERE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')
DYNAMIC = (
    "data-dependent",
    "Dynamic control flow",
    "GuardOnDataDependent",
    "Data-dependent branching",
    "dynamic control flow",
)
SPECIALIZED = ("specialized", "specialization", "ConstraintViolation", "Constraints violated")


def program_of(trained: TrainedModel) -> Any:
    """The exported program, with free sizes where the model has them. Raises `ExportError` for what cannot be traced."""
    import torch
    from torch.export import Dim

    arguments = tuple(map(torch.from_numpy, trained.example))
    free = tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(spec.shape) if size is None} or None for spec in trained.inputs
    )
    try:
        return torch.export.export(trained.function, arguments, dynamic_shapes=(free,))
    except Exception as error:
        raise refused(error, trained) from error


def refused(error: Exception, trained: TrainedModel) -> ExportError:
    """Return torch's message in one sentence that names the place in the model's code."""
    text = f"{type(error).__name__}: {error}"
    place = _place(text, error)
    model = type(trained.model).__name__
    if any(word in text for word in DYNAMIC):
        return ExportError(
            f"{model} decides by the values of a tensor{place}, which a traced graph cannot",
            "Write it with torch.where or torch.cond, or take --to torchscript, which keeps Python's control flow; "
            "--to safetensors keeps the weights for the model's own code.",
        )
    if any(word in text for word in SPECIALIZED):
        return ExportError(
            f"{model} works for one batch size only{place}: {first_line(error)}",
            "Take the size from the tensor (x.shape[0]) and make no number of it (int(), .item()).",
        )
    return ExportError(
        f"torch.export cannot trace {model}{place}: {first_line(error)}",
        "--to torchscript may take it; --to safetensors keeps the weights for the model's own code.",
    )


def _place(text: str, error: Exception) -> str:
    """The line of the user's code that an error names in its text or came through."""
    import traceback

    found = [(file, line, name) for file, line, name in WHERE.findall(text)]
    found += [(frame.filename, str(frame.lineno), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    own = [one for one in found if source_files.is_users(one[0])]
    return f" in {own[-1][0]}, line {own[-1][1]}" if own else ""
