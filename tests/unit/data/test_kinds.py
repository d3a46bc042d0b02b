"""Map-style data sets of the libraries that people use: data workers fetch the same batches as the process itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from dtrain.data.data_worker import same
from dtrain.data.prefetch import DataWait, Prefetcher, PrefetchSettings
from dtrain.data.stream import opened

SIZE = 40


class Pairs(Dataset):  # type: ignore[misc, type-arg, unused-ignore]
    """A map-style data set."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((3,), float(index)) + torch.rand(3), "name": f"sample {index}"}


def hugging_face(data_format: str | None = None) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = {
        "x": np.arange(3 * SIZE, dtype=np.float32).reshape(SIZE, 3).tolist(),
        "name": [f"n{n}" for n in range(SIZE)],
    }
    return datasets.Dataset.from_dict(rows).with_format(data_format)


KINDS: dict[str, Callable[[], Any]] = {
    "map-style": Pairs,
    "subset": lambda: Subset(Pairs(), list(range(SIZE))),
    "concatenated": lambda: ConcatDataset([Pairs(), Subset(Pairs(), [1, 2])]),
    "tensors": lambda: Subset(TensorDataset(torch.arange(SIZE)), list(range(SIZE))),
    "loader": lambda: DataLoader(Pairs(), batch_size=3, shuffle=True),
    "hugging face": hugging_face,
    "hugging face as torch": lambda: hugging_face("torch"),
    "hugging face as numpy": lambda: hugging_face("numpy"),
    "hugging face, transformed": lambda: hugging_face().with_transform(
        lambda rows: {"x": np.random.rand(len(rows["x"]))}
    ),
    "hugging face, iterable": lambda: hugging_face("numpy").to_iterable_dataset(num_shards=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_workers_fetch_what_the_process_itself_fetches(kind: str) -> None:
    data = opened(KINDS[kind](), seed=7, name="data", again=KINDS[kind])

    def fetch(number: int) -> Any:
        return data.fetch(np.arange(number * 4, number * 4 + 4), number * 4)

    own = [fetch(number) for number in range(2, SIZE // 4)]
    settings = PrefetchSettings(workers=2, ahead=2, memory=10**9, cpus=2, silent_seconds=60.0)
    with closing(Prefetcher(fetch, range(2, SIZE // 4), settings, DataWait())) as prefetcher:
        fetched = [prefetcher.get(number) for number in range(2, SIZE // 4)]
    assert len(own) == len(fetched) == SIZE // 4 - 2
    assert all(same(one, other) for one, other in zip(own, fetched, strict=True))
