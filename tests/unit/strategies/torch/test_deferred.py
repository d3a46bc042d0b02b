"""Models that are built without content get the very weights of an ordinary construction."""

from __future__ import annotations

import importlib.util
import io
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from dtrain.common.errors import UserError
from dtrain.strategies.torch.train.deferred import attempted


class ByHand(nn.Module):  # type: ignore[misc]
    """What people write in a constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 7) * 0.02)
        self.legacy = nn.Parameter(torch.Tensor(3, 4))
        nn.init.kaiming_normal_(self.legacy)
        self.values = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.part = nn.Parameter(torch.eye(6)[1:4].clone(), requires_grad=False)
        self.embedding = nn.Embedding(20, 8, padding_idx=3)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.half = nn.Linear(5, 5).half()
        self.register_buffer("mask", torch.tril(torch.ones(9, 9)).view(1, 9, 9))
        self.register_buffer("rates", 1 / 10 ** torch.linspace(0, 1, 5), persistent=False)
        self.kept = [torch.rand(3), {"line": torch.zeros(5) + 1}]
        angles = torch.arange(8).unsqueeze(1) * torch.exp(torch.arange(0, 6, 2) * -0.3)
        self.register_buffer("positions", torch.zeros(8, 6))
        self.positions[:, 0::2], self.positions[:, 1::2] = torch.sin(angles), torch.cos(angles)


class Redrawn(nn.Module):  # type: ignore[misc]
    """Every weight is drawn again when all are there."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.apply(self._draw)

    def _draw(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.trunc_normal_(module.weight, std=0.02)


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 6),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm1d(4),
        nn.LSTM(4, 5, 2),
        nn.MultiheadAttention(8, 2),
        nn.PReLU(),
    )


def fillers() -> nn.Module:
    fills = (nn.init.orthogonal_, nn.init.trunc_normal_, lambda one: nn.init.sparse_(one, 0.3), nn.init.eye_)
    made = [nn.Linear(9, 4) for _ in fills]
    for fill, layer in zip(fills, made, strict=True):
        fill(layer.weight)
    return nn.Sequential(*made)


def seeded() -> nn.Module:
    """A seed of the model's own, twice the same, and a generator of its own."""
    parts = []
    for _ in range(2):
        torch.manual_seed(3)
        parts.append(nn.Linear(3, 3))
    generator = torch.Generator().manual_seed(5)
    nn.init.normal_(parts[0].bias, generator=generator)
    torch.manual_seed(8)
    return nn.Sequential(*parts)


def rates() -> nn.Module:
    return nn.Sequential(*(nn.Dropout(rate.item()) for rate in torch.linspace(0, 0.1, 3)), nn.Linear(2, 2))


def loaded() -> nn.Module:
    """Given weights, and an array that is used twice."""
    model = nn.Linear(2, 3)
    model.load_state_dict({"bias": torch.tensor([1.0, 2.0, 3.0]), "weight": torch.tensor([[1.0, 2.0]] * 3)})
    array = numpy.ones((2, 3), dtype=numpy.float32)
    with torch.no_grad():
        model.weight += torch.from_numpy(array).T
        array *= 2
        model.weight += torch.from_numpy(array).T
    return model


def normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))


def transformer() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes))


CASES = [layers, ByHand, Redrawn, fillers, seeded, rates, loaded, normed]
if importlib.util.find_spec("transformers"):
    CASES.append(transformer)


def tensors(model: nn.Module) -> dict[str, Any]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_weights_and_the_generator_are_those_of_an_ordinary_construction(make: Callable[[], Any]) -> None:
    torch.manual_seed(11)
    expected, drawn = tensors(make()), torch.rand(1)
    torch.manual_seed(11)
    deferred = attempted(lambda: {"": make()}, needed=True)
    assert deferred is not None
    assert all(one.is_meta for one in deferred.models[""].parameters())
    deferred.materialise("cpu")
    found = tensors(deferred.models[""])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert (found[name].dtype, found[name].requires_grad) == (value.dtype, value.requires_grad), name
    assert torch.equal(torch.rand(1), drawn)


def test_tied_weights_stay_one_and_what_lies_elsewhere_has_content() -> None:
    torch.manual_seed(1)
    expected = ByHand()
    torch.manual_seed(1)
    deferred = attempted(lambda: {"": ByHand()}, needed=True)
    assert deferred is not None
    deferred.materialise("cpu")
    model = deferred.models[""]
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.kept[0], expected.kept[0])
    assert torch.equal(model.kept[1]["line"], expected.kept[1]["line"])


def test_a_whole_model_is_filled_from_its_state_and_draws_only_what_that_lacks() -> None:
    trained = ByHand()
    deferred = attempted(lambda: {"": ByHand()}, needed=True)
    assert deferred is not None
    deferred.fill({"": trained.state_dict()})
    found = tensors(deferred.models[""])
    assert all(torch.equal(found[name], value) for name, value in tensors(trained).items())


def test_a_tensor_that_cannot_be_filled_later_is_an_error_that_says_what_to_do() -> None:
    watched = []

    def make() -> Any:
        model = ByHand()
        watched.append(weakref.ref(model.kept[0]))
        return model

    deferred = attempted(lambda: {"": make()}, needed=False)
    assert deferred is not None
    with pytest.raises(UserError, match=r"Set strategy\.build to whole"):
        deferred.materialise("cpu")


def test_a_mistake_of_the_users_is_told_as_it_is() -> None:
    def make() -> Any:
        raise UserError("no module")

    with pytest.raises(UserError, match="no module"):
        attempted(make, needed=False)


def forked() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = nn.Linear(2, 2)
    return nn.Sequential(first, nn.Linear(2, 2))


def looked_at() -> nn.Module:
    layer = nn.Linear(2, 2)
    if layer.weight.sum() > 0:
        nn.init.zeros_(layer.bias)
    return layer


def caught() -> nn.Module:
    layer = nn.Linear(2, 2)
    try:
        layer.weight.detach().numpy()
    except (RuntimeError, TypeError):
        nn.init.zeros_(layer.weight)
    return layer


def from_file() -> nn.Module:
    layer, file = nn.Linear(2, 2), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file))
    return layer


@pytest.mark.parametrize("make", [forked, looked_at, caught, from_file], ids=lambda make: make.__name__)
def test_what_needs_values_is_left_to_the_ordinary_way_and_said(
    make: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    assert attempted(lambda: {"": make()}, needed=False) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert "every worker makes the whole model" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"strategy\.build is meta"):
        attempted(lambda: {"": make()}, needed=True)
