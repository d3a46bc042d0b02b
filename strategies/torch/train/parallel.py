"""The differences between PyTorch strategies: wrapping the model, and when gradients are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

from dtrain.api.strategy import RankInfo

from ..exact import tree_sums
from ..exact.tree_sums import ExactSums
from ..state.state import ONLY
from ..watch.measures import StepMeasures
from ..watch.phases import StepPhases
from .loss_scale import LossScale
from .objective import Objective, multiply
from .step_check import StepCheck

Precision = Literal["fp32", "bf16", "fp16"]
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": tuple(
        f"_scaled_dot_product_{kind}"
        for kind in (
            "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention", "fused_attention_overrideable",
        )
    ),
}  # fmt: skip
"""Name of several operations → their names in `torch.ops.aten`."""


class Parallel:
    """The model as it is: right for a single process, and the base of the others."""

    shards = False
    """Whether a worker holds only a part of the model."""
    waits_inside = False
    """Whether a worker waits for others in the midst of its forward and backward passes."""
    takes_closures = True
    """Whether an optimizer may compute the loss itself, in `step(closure)`."""
    averages_all = True
    """Whether the ranks average the gradients of parameters that no optimizer trains, too."""
    measures_gradient = True
    """Whether the norm of the gradient can be had on the device where the gradient is."""

    def __init__(self, *, precision: Precision = "fp32", exact: ExactSums | None = None) -> None:
        self.precision = precision
        self.scales_loss = precision == "fp16"
        self.scale: LossScale | None = None
        """What the loss is multiplied with; set before a model is wrapped, if it `scales_loss`."""
        self.exact = exact
        """Sums the gradients (`train.exact`)."""
        self.weighted: dict[str, bool] = {}
        """Method of the user's → whether its losses have weights, on which the ranks agreed in the first step."""
        self.phases: StepPhases | None = None
        """The clock of the steps; set before a model is wrapped."""

    def built(self, make: Callable[[], dict[str, Any]], device: Any) -> dict[str, Any]:
        """Collective. The parallel models, by name, of those that the user's code makes."""
        return {name: self.wrap(model.to(device), device) for name, model in make().items()}

    def wrap(self, model: Any, device: Any) -> Any:
        """The parallel model of the user's."""
        return model

    def plain(self, model: Any) -> Any:
        """The user's own module in a wrapped one."""
        return model

    def optimizer(self, optimizer: Any, named_parameters: list[tuple[str, Any]], passes: int) -> Any:
        """Wrap the user's optimizer; `passes` is the number of backward passes a step."""
        return optimizer

    def gradient_sync(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Around one backward pass of a step; gradients are averaged over the ranks in the last one."""
        return nullcontext()

    def reduced(self, model: Any) -> bool:
        """Whether a backward pass leaves the gradients of a model summed by `exact` already."""
        return False

    def clip(self, parameters: Iterable[Any], most: float) -> Any:
        """Scale the averaged gradients of these parameters down to this norm, if theirs is larger; the norm."""
        import torch

        return tree_sums.clip(parameters, most) if self.exact else torch.nn.utils.clip_grad_norm_(parameters, most)

    def autocast(self, device: Any) -> AbstractContextManager[Any]:
        """Around the computation of the loss."""
        import torch

        context: AbstractContextManager[Any] = nullcontext()
        if self.precision != "fp32":
            context = torch.autocast(device.type, dtype=torch.bfloat16 if self.precision == "bf16" else torch.float16)
        return context

    def watch_calls(self, model: Any, device: Any, watch: Callable[..., None]) -> None:
        """Have each call of a model that a loop of the user's own makes compute in `precision`, and its output watched."""
        contexts: list[AbstractContextManager[Any]] = []

        def enter(*_: Any) -> None:
            contexts.append(self.autocast(device))
            contexts[-1].__enter__()

        def leave(*_: Any) -> None:
            contexts.pop().__exit__(None, None, None)

        model.register_forward_pre_hook(enter)
        model.register_forward_hook(leave, always_call=True)
        model.register_forward_hook(watch)

    def objective(self, name: str, rank_info: RankInfo, passes: int) -> Objective:
        """Begin the objective of a step: of losses that a method of this name gives, in so many passes."""
        return Objective(name, rank_info, passes, weighted=self.weighted, exact=bool(self.exact), scale=self.scale)

    def backward(self, loss: Any) -> None:
        """Add the gradients of a loss, which are scaled until `apply`."""
        (self.scale.times(loss) if self.scale else loss).backward()

    def norm(self, parameters: Iterable[Any], *, judged: bool) -> Any:
        """Return the norm of the averaged gradients of these parameters; `judged`: its bits decide something."""
        import torch

        if judged and self.exact:
            return self.clip(parameters, math.inf)
        return torch.nn.utils.get_total_norm([_values(one.grad) for one in parameters if one.grad is not None])

    def apply(
        self,
        optimizers: Sequence[Any],
        parameters: Iterable[Any],
        clip_norm: float | None,
        measures: StepMeasures,
        check: StepCheck,
        name: str = ONLY,
        factor: Any = None,
    ) -> bool:
        """Multiply the averaged gradients of these parameters by `factor` if there is one, clip them and take the step of all
        optimizers, if the check lets them: whether it does. `name` is that of the optimizers in `measures`."""
        norm = None
        if self.scale:
            self.scale.unscale(optimizers)
        if factor is not None:
            parameters = list(parameters)
            multiply(parameters, factor)
        if clip_norm:
            norm = self.clip(parameters, clip_norm)
        elif self.measures_gradient and (measures.due or check.wants_norm):
            norm = self.norm(parameters, judged=check.judge is not None)
        if not self.measures_gradient:
            norm = None
        elif norm is not None and (measures.due or check.wants_norm):
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        steps = check.may_step(norm, self.scale)
        if self.scale:
            self.scale.update()
        if not steps:
            return False
        for optimizer in optimizers:
            optimizer.step()
        if norm is not None and measures.due:
            measures.gradient(norm, name)
        return True


def _values(gradient: Any) -> Any:
    """Return the tensor whose norm is a gradient's: there is none of a sparse one, and one in fp16 overflows at
    65504."""
    import torch

    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return gradient.float() if gradient.dtype == torch.float16 else gradient


def modules_named(model: Any, names: tuple[str, ...]) -> list[Any]:
    """The modules of these classes; raises `ValueError` that lists the classes there are for a name that is none."""
    there = {type(module).__name__ for module in model.modules()}
    for name in names:
        if name not in there:
            raise ValueError(f"the model has no module of the class '{name}': it has {', '.join(sorted(there))}")
    return [module for module in model.modules() if type(module).__name__ in names]


def compiled(model: Any, *, when: bool) -> Any:
    """The model through torch.compile, in place, so that its state keeps its names."""
    if when:
        model.compile()
    return model


class Checkpointing(Protocol):
    """Options of a strategy that checkpoints activations."""

    @property
    def activation_checkpointing(self) -> tuple[str, ...]:
        """Classes of modules."""

    @property
    def activation_checkpointing_every(self) -> int:
        """Of their modules every n-th."""

    @property
    def activation_checkpointing_keep(self) -> tuple[str, ...]:
        """Operations whose results are kept."""


def checkpointed(model: Any, options: Checkpointing) -> Any:
    """Have modules compute their activations once more in the backward pass instead of keeping them."""
    if not options.activation_checkpointing:
        return model
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    modules = modules_named(model, options.activation_checkpointing)
    chosen = {id(module) for module in modules[:: options.activation_checkpointing_every]}
    wrapper = checkpoint_wrapper
    if keep := options.activation_checkpointing_keep:
        contexts = partial(create_selective_checkpoint_contexts, operations_named(keep))
        wrapper = partial(checkpoint_wrapper, context_fn=contexts)
    apply_activation_checkpointing(model, wrapper, check_fn=lambda module: id(module) in chosen)
    return model


def operations_named(names: tuple[str, ...]) -> list[Any]:
    """The operations of torch of these names, in all their forms; raises `ValueError` for a name that is none."""
    import torch

    found = []
    for name in names:
        namespace, _, own = name.rpartition(".")
        there = getattr(torch.ops, namespace or "aten")
        packets = [getattr(there, one) for one in OPERATIONS.get(name, (own,)) if hasattr(there, one)]
        if not packets:
            raise ValueError(
                f"torch has no operation '{name}': name it as in torch.ops.aten (mm), or {' or '.join(OPERATIONS)}"
            )
        found += [getattr(packet, form) for packet in packets for form in packet.overloads()]
    return found
