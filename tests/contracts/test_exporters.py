"""What every installed exporter promises, found through the entry points and tried with the real libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import logical_cpus
import numpy as np
import pytest

from dtrain.api import testing
from dtrain.launch import registry

NEED_EXTRAS = ("aoti", "litert", "onnx", "tfjs")
"""Exporters that need packages besides their framework, a compiler or Node."""


def case(name: str, framework: str) -> Any:
    """An exporter and a framework as parameters, with the markers of what they need."""
    marks = [pytest.mark.extras] if name in NEED_EXTRAS else []
    return pytest.param(name, framework, marks=[*marks, pytest.mark.tensorflow] if framework == "tensorflow" else marks)


CASES = [
    case(name, framework)
    for name in registry.installed("exporter")
    for framework in registry.plugin_class("exporter", name).frameworks
]


def small(framework: str) -> tuple[Any, dict[str, Any]]:
    """A model of a framework, and its weights."""
    if framework == "torch":
        import torch

        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
        return module, module.state_dict()
    import keras

    logical_cpus.four()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )
    return model, {f"{number:05d}.{one.name}": one.numpy() for number, one in enumerate(model.weights)}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "framework"), CASES)
def test_what_an_exporter_writes_gives_the_same_in_its_runtime(name: str, framework: str, tmp_path: Path) -> None:
    model, weights = small(framework)
    plugin = registry.plugin_class("framework", framework)
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(size, 4)).astype(np.float32) for size in (6, 3)]
    testing.check_exporter(registry.exporter(name, {}), plugin, model, weights, batches, tmp_path)
