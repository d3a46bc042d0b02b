"""Folders of Hugging Face are written, and models filled, with the memory of one tensor."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from dtrain.checkpoint.tensor_file import entries_of
from dtrain.common.errors import UserError
from dtrain.strategies.torch.state import hugging_face
from dtrain.strategies.torch.state.tensor_files import Piece, StoredTensor, TensorFiles
from dtrain.strategies.torch.state.weights import TorchWeights

LARGEST = 8192 * 512 * 4
SLACK = 48 << 20
"""Of libraries that are imported meanwhile, and what the allocator keeps."""


class Text:
    """A model of 113 MB whose largest tensor has 16.8."""

    name = "Text"
    layers = 8

    def model(self) -> GPT2LMHeadModel:
        return GPT2LMHeadModel(GPT2Config(vocab_size=8192, n_positions=32, n_embd=512, n_layer=self.layers, n_head=2))


class Small(Text):
    layers = 1


def total(model: torch.nn.Module) -> float:
    return float(sum(one.double().sum() for one in model.state_dict().values()))


class OwnFolder(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    def save_pretrained(self, path: Path, **named: Any) -> None:  # type: ignore[override]
        path.mkdir()
        (path / "sum").write_text(str(total(self)))


class WithOwnFolder(Small):
    def model(self) -> GPT2LMHeadModel:
        return OwnFolder(super().model().config)


def in_pieces(folder: Path, model: torch.nn.Module) -> TensorFiles:
    """The weights of a model as two ranks have written them, each the half of the rows."""
    rows = {name: torch.arange(len(value)).chunk(2) for name, value in model.state_dict().items()}
    pieces: dict[str, list[Piece]] = {name: [] for name in rows}
    for rank in range(2):
        path = folder / f"__{rank}_0.safetensors"
        own = {name: model.state_dict()[name][there[rank]] for name, there in rows.items()}
        save_file({name: value.clone() for name, value in own.items()}, path)
        for entry in entries_of(path):
            offset = (int(rows[entry.name][rank][0]), *(0 for _ in entry.shape[1:]))
            pieces[entry.name].append(Piece(path, entry.begin, entry.length, offset, entry.shape))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return TensorFiles(
        {name: StoredTensor(torch.float32, shapes[name], tuple(found)) for name, found in pieces.items()}
    )


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def most_memory(call: Callable[[], Any]) -> int:
    """What a call takes at most beyond what there is before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def assert_equal(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, TensorFiles]:
    model = Text().model()
    return model, in_pieces(tmp_path_factory.mktemp("saved"), model)


def test_a_folder_is_written_tensor_by_tensor_and_transformers_loads_it(
    saved: tuple[GPT2LMHeadModel, TensorFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face, "SHARD_BYTES", 40_000_000)
    expected, weights = saved
    hub = tmp_path / "hub"

    def leave() -> None:
        TorchWeights.write(hub, weights, TorchWeights.build(Text(), "Text", empty=True), {"dtrain.step": "3"})

    assert most_memory(leave) < 2 * LARGEST + SLACK
    files = json.loads((hub / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(files.values()) == {f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)}
    assert "lm_head.weight" not in files, "it is tied to another one, which stands for both"
    assert_equal(AutoModelForCausalLM.from_pretrained(hub), expected)
    again = TorchWeights.read_file(hub, lambda: None)
    assert all(torch.equal(again[name], expected.state_dict()[name]) for name in files)


def test_a_model_is_filled_tensor_by_tensor(saved: tuple[GPT2LMHeadModel, TensorFiles]) -> None:
    expected, weights = saved
    model = Text().model()
    assert most_memory(lambda: TorchWeights.load_into(model, weights, strict=True, source="it")) < 2 * LARGEST + SLACK
    assert_equal(model, expected)


def test_a_device_map_fills_a_model_that_has_no_memory(saved: tuple[GPT2LMHeadModel, TensorFiles]) -> None:
    expected, weights = saved
    size = sum(value.nbytes for value in expected.parameters())
    with torch.device("meta"):
        model = Text().model()

    def load(devices: Any) -> None:
        TorchWeights.load_into(model, weights, strict=True, source="it", device_map=devices)

    with pytest.raises(UserError, match=r"device_map has no device for transformer.h.0.ln_1"):
        load({"lm_head": "cpu", "transformer.wte": "cpu", "transformer.wpe": "cpu"})
    with pytest.raises(UserError, match=r"device_map: .*auto"):
        load("auto")
    with torch.device("meta"):
        model = Text().model()
    assert most_memory(lambda: load({"": "meta", "transformer": "cpu", "lm_head": "cpu"})) < size + 2 * LARGEST + SLACK
    assert_equal(model, expected)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.wte.weight.requires_grad


def test_a_tensor_that_no_weight_fills_is_named() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
        model.register_buffer("scale", torch.ones(2), persistent=False)
    given = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    with pytest.raises(UserError, match="no weight fills scale, which the model has on the meta device"):
        TorchWeights.load_into(model, given, strict=True, source="it", device_map="cpu")


def test_a_model_that_writes_its_folder_in_its_own_way_is_built_whole(tmp_path: Path) -> None:
    expected = WithOwnFolder().model()
    weights = in_pieces(tmp_path, expected)
    TorchWeights.write(tmp_path / "hub", weights, TorchWeights.build(WithOwnFolder(), "own", empty=True), {})
    assert (tmp_path / "hub/sum").read_text() == str(total(expected))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = in_pieces(tmp_path, Small().model())
    with pytest.raises(UserError, match=r"transformer.h.7.mlp.c_proj.bias: in the model only"):
        TorchWeights.write(tmp_path / "hub", weights, TorchWeights.build(Text(), "Text", empty=True), {}, "it")
