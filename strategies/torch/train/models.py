"""The user's models as a task gives them, checked. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave

from ..state.state import ONLY


def made(task: Any, name: str, *, several: bool) -> dict[str, Any]:
    """The models of a task by name; raises `UserError`, which begins with the task's, for what is none."""
    import torch

    method = f"{name}.{'models' if several else 'model'}"
    models = task.models() if several else {ONLY: task.model()}
    if not isinstance(models, Mapping) or not models:
        raise UserError(f"{method} gave {gave(models)}; expected a dict of modules by name")
    for key, model in models.items():
        if not isinstance(model, torch.nn.Module):
            raise UserError(f"{method} gave {gave(model)}{f' for {key!r}' if key else ''}; expected a torch.nn.Module")
        if key and not str(key).isidentifier():
            raise UserError(f"{method} names a model {key!r}; expected an identifier, like 'generator'")
    return dict(models)
