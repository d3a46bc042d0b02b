"""Whether every rank was given the same data: dtrain gives each of them its own part, so data that is split by rank already would be split
twice."""

from __future__ import annotations

from dtrain.api.training_backend import TrainingBackend
from dtrain.common.errors import UserError
from dtrain.data.batches import Batches
from dtrain.data.stream import Stream


def require(data: Batches | Stream, backend: TrainingBackend) -> None:
    """Collective. Raise `UserError` if lengths, or the first samples of streams, differ between the ranks."""
    beginning = data.beginning() if isinstance(data, Stream) else None
    own = {"size": float(data.size)} | ({} if beginning is None else {"beginning": float(beginning)})
    everyones = backend.mean(own)
    if everyones["size"] != data.size:
        raise UserError(
            f"{data.name} gave {data.size} samples on this rank and other numbers on others: give the whole data set on every rank, "
            "not a part by rank; dtrain gives each worker its own part of every batch"
        )
    # A stream that does not begin alike twice is random; of it nothing can be said.
    if isinstance(data, Stream) and beginning is not None and everyones["beginning"] != beginning == data.beginning():
        raise UserError(
            f"{data.name} gave a stream whose first samples differ between the ranks: it is split by rank already, and each worker would "
            "train on a part of its part; give the whole stream (no split_dataset_by_node, node splitter or RANK), of which each worker "
            "takes its own samples"
        )
