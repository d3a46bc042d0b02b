"""GPUs that are not there: NVIDIA's library is the one of tests/support/fake_nvml, for this process and for all that a test starts."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dtrain.agent import gpu_leases

LIBRARY = Path(__file__).with_name("fake_nvml")


class FakeGpus:
    """The GPUs of this machine, which a test may change while they are used."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self.uuids = [f"GPU-{uuid.uuid4()}" for _ in range(count)]
        self._facts = [
            {"uuid": one, "busy": 50, "used": 1 << 30, "total": 80 << 30, "bus": f"00000000:{number:02X}:00.0", "processes": []}
            for number, one in enumerate(self.uuids)
        ]  # fmt: skip
        self.change(0)

    def change(self, number: int, **facts: Any) -> None:
        """From now on the library says this of a GPU."""
        self._facts[number] |= facts
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps(self._facts))
        aside.replace(self._path)

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a program on this machine, and some more."""
        usual = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        return usual | {"PYTHONPATH": str(LIBRARY), "FAKE_NVML": str(self._path)} | more


@contextmanager
def gpus(folder: Path, count: int) -> Iterator[FakeGpus]:
    """So many GPUs for programs that get their `environment`."""
    found = FakeGpus(folder / "gpus.json", count)
    yield found
    for path in (Path(gpu_leases.BASE) / f"dtrain-{os.getuid()}" / gpu_leases.FOLDER).glob("GPU-*"):
        if path.stem in found.uuids:
            path.unlink()


@contextmanager
def gpus_here(folder: Path, count: int) -> Iterator[FakeGpus]:
    """So many GPUs for this process, too."""
    with gpus(folder, count) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_NVML", str(found._path))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.syspath_prepend(str(LIBRARY))
        patch.delitem(sys.modules, "pynvml", raising=False)
        yield found
        sys.modules.pop("pynvml", None)
