"""The folder that TensorFlow Serving serves: numbered SavedModels of a model, and its two files of configuration."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from dtrain.api.exporter import Exported

MODELS = """model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""
BATCHING = """max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 4 }
"""


class TensorFlowServing:
    """A model's folder for TensorFlow Serving: versions, models.config, batching.config"""

    formats: ClassVar[tuple[str, ...]] = ("savedmodel",)
    default: ClassVar[Mapping[str, str]] = MappingProxyType({"tensorflow": "savedmodel"})

    @staticmethod
    def write(exported: Exported, folder: Path, version: int) -> list[str]:
        numbered = max((one for one in exported.path.iterdir() if one.is_dir()), key=lambda one: one.name)
        shutil.move(numbered, folder / str(version))
        name = exported.name
        (folder / "models.config").write_text(MODELS.format(name=name))
        (folder / "batching.config").write_text(BATCHING)
        return [
            f"docker run -p 8501:8501 -v $PWD/{name}:/models/{name} tensorflow/serving "
            f"--model_config_file=/models/{name}/models.config --enable_batching --batching_parameters_file=/models/{name}/batching.config",
            f"""curl -d '{{"instances": […]}}' http://localhost:8501/v1/models/{name}:predict""",
        ]
