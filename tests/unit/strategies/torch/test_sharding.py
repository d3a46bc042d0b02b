"""The options of fsdp, each seen in what it does to a model; one rank, whose model is sharded all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dtrain.common.errors import UserError
from dtrain.job.job import Resources
from dtrain.strategies.torch.train.fsdp import FSDP, HSDP, FSDPOptions, HSDPOptions, MixedPrecision, Sharded

CPU = torch.device("cpu")


class Block(nn.Module):  # type: ignore[misc]
    """One linear layer, which keeps the type that it computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.computed_in: Any = None

    def forward(self, x: Any) -> Any:
        y = self.inner(x)
        self.computed_in = y.dtype
        return y


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


def sharded(mesh: Any, model: Any = None, folder: Path = Path(), **options: Any) -> Any:
    """Four blocks, or another model, under these options."""
    model = model or nn.Sequential(*(Block() for _ in range(4)))
    return Sharded(FSDPOptions(**{"wrap": ("Block",)} | options), mesh, folder=folder).wrap(model, CPU)


def test_types_are_chosen_by_role(mesh: Any) -> None:
    model = sharded(mesh, mixed_precision=MixedPrecision(param="bf16", reduce="bf16", output="fp32"))
    assert model(torch.ones(2, 4)).dtype == torch.float32
    assert model[0].computed_in == torch.bfloat16
    assert sharded(mesh, mixed_precision=MixedPrecision(param="bf16"))(torch.ones(2, 4)).dtype == torch.bfloat16


def test_a_function_chooses_the_modules(mesh: Any, tmp_path: Path) -> None:
    (tmp_path / "choice.py").write_text("def last(model):\n    return [model[3]]\ndef none(model):\n    return 3\n")
    model = sharded(mesh, folder=tmp_path, wrap=("choice.py:last",))
    assert [isinstance(block, FSDPModule) for block in model] == [False, False, False, True]
    with pytest.raises(UserError, match="expected a list of modules"):
        sharded(mesh, folder=tmp_path, wrap=("choice.py:none",))


def test_gathered_parameters_are_kept_where_they_are_not_freed(mesh: Any) -> None:
    kept = {}
    for reshard in (True, False):
        model = sharded(mesh, reshard_after_forward=reshard)
        model(torch.ones(2, 4))
        kept[reshard] = isinstance(model[0].inner.weight, DTensor)
    assert kept == {True: True, False: False}


def test_a_number_of_workers_that_keep_parameters_must_divide_those_that_share() -> None:
    def problems(strategy: FSDP) -> str:
        return " ".join(strategy.problems(Resources(workers=4)))

    assert not problems(FSDP(FSDPOptions(reshard_after_forward=2)))
    assert "3 does not divide the 4 workers" in problems(FSDP(FSDPOptions(reshard_after_forward=3)))
    assert "4 does not divide the 2 workers" in problems(HSDP(HSDPOptions(reshard_after_forward=4, replicas=2)))


def test_precision_is_given_once() -> None:
    options = FSDPOptions(precision="bf16", mixed_precision=MixedPrecision(param="fp16"))
    assert "leave out one of them" in FSDP(options).problems(Resources())[0]


def test_more_modules_are_gathered_ahead(mesh: Any) -> None:
    ahead = [len(block._get_fsdp_state()._states_to_forward_prefetch) for block in sharded(mesh, prefetch=2)]
    back = [len(block._get_fsdp_state()._states_to_backward_prefetch) for block in sharded(mesh, prefetch=2)]
    assert (ahead, back) == ([2, 2, 1, 0], [0, 1, 2, 2])


def test_frozen_parameters_can_stay_whole(mesh: Any) -> None:
    model = nn.Sequential(*(Block() for _ in range(4)))
    model[0].inner.requires_grad_(requires_grad=False)
    sharded(mesh, model, ignored=("0.*",))
    assert not isinstance(model[0].inner.weight, DTensor)
    assert isinstance(model[1].inner.weight, DTensor)
    with pytest.raises(UserError, match=r"1\.inner\.weight is trained"):
        sharded(mesh, ignored=("1.*",))
    with pytest.raises(UserError, match="no parameter of the model is called 'head'"):
        sharded(mesh, ignored=("head",))


def test_every_nth_module_computes_its_activations_again(mesh: Any) -> None:
    model = sharded(mesh, activation_checkpointing=("Block",), activation_checkpointing_every=2)
    assert [hasattr(block, "_checkpoint_wrapped_module") for block in model] == [True, False, True, False]


class Pair(nn.Module):  # type: ignore[misc]
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).relu())


class Counted(TorchDispatchMode):  # type: ignore[misc]
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.addmm.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("again", "keep", "products"),
    [
        ((), (), 4),
        (("Pair",), (), 6),
        (("Pair",), ("matmul",), 4),
        (("Pair",), ("mm", "relu"), 6),
    ],
)
def test_results_of_chosen_operations_are_kept(
    mesh: Any, again: tuple[str, ...], keep: tuple[str, ...], products: int
) -> None:
    """Of two layers in a block, the second's result is not needed again."""

    def model() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(Pair(), Pair())

    def passed(found: Any) -> Any:
        found(torch.ones(2, 4)).square().sum().backward()
        return [one.grad for one in found.parameters()]

    options: Any = {"activation_checkpointing": again, "activation_checkpointing_keep": keep, "wrap": ("Pair",)}
    found = sharded(mesh, model(), **options)
    with Counted() as counted:
        gradients = passed(found)
    assert counted.count == products
    assert all(torch.equal(one.full_tensor(), other) for one, other in zip(gradients, passed(model()), strict=True))


def test_an_operation_that_torch_does_not_have_is_named(mesh: Any) -> None:
    options: Any = {"activation_checkpointing": ("Block",), "activation_checkpointing_keep": ("matmull",)}
    with pytest.raises(ValueError, match=r"torch has no operation 'matmull': .* or matmul or attention"):
        sharded(mesh, **options)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_each_block_is_compiled_by_itself(mesh: Any) -> None:
    for option, parts, whole in ((False, False, False), (True, False, True), ("block", True, False)):
        model = sharded(mesh, compile=option)
        assert (model._compiled_call_impl is not None) == whole
        assert {block._compiled_call_impl is not None for block in model} == {parts}


def test_an_optimizer_that_torch_cannot_shard_is_refused_by_name(mesh: Any) -> None:
    parallel = Sharded(FSDPOptions(), mesh)
    model = parallel.wrap(nn.Linear(6, 8, bias=False), CPU)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.ones(4, 6)).sum().backward()
    with pytest.raises(RuntimeError) as raised:
        optimizer.step()
    assert FSDP(FSDPOptions()).explain(raised.value) == (
        "Adafactor cannot step weights that are sharded: take strategy: ddp, or another optimizer"
    )
