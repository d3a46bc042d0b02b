"""Whether every rank was given the same data: dtrain gives each of them its own part, so data that is split by rank already would be split
twice, unless the recipe says so (`data.sharded`)."""

from __future__ import annotations

from typing import Any

from dtrain.api.training_backend import TrainingBackend
from dtrain.common.errors import UserError
from dtrain.data.batches import Batches
from dtrain.data.sampler import UNKNOWN_SIZE
from dtrain.data.stream import Stream


def require(begun: Beginning, backend: TrainingBackend) -> None:
    """Collective. Raise `UserError` if lengths, or samples at the same places, differ between the ranks."""
    data, beginning = begun.data, begun.content
    own = {"size": float(data.size)} | ({} if beginning is None else {"beginning": float(beginning)})
    everyones = backend.mean(own)
    if everyones["size"] != data.size:
        raise UserError(
            f"{data.name} gave {data.size} samples on this rank and other numbers on others: give the whole data set on every rank, "
            "not a part by rank; dtrain gives each worker its own part of every batch"
        )
    # Samples that are not the same when they are read twice are random; of them nothing can be said.
    if beginning is None or not (everyones["beginning"] != beginning == data.beginning()):
        return
    if isinstance(data, Stream):
        raise UserError(
            f"{data.name} gave a stream whose first samples differ between the ranks: it is split by rank already, and each worker would "
            "train on a part of its part; give the whole stream (no split_dataset_by_node, node splitter or RANK), of which each worker "
            "takes its own samples, or set data.sharded: true, by which each worker reads its own stream alone"
        )
    raise UserError(
        f"{data.name} gave samples that differ between the ranks, as many on each: it is split by rank already, or draws other numbers on each, "
        "and each worker would train on a part of its part; give the same data on every rank (no RANK, DistributedSampler or random split "
        "without a seed), of which dtrain gives each worker its own part"
    )


def require_split(data: Stream, backend: TrainingBackend) -> None:
    """Collective. Raise `UserError` if the streams of all ranks begin alike, so that all would train on the same samples."""
    beginning = data.beginning()
    own = {} if beginning is None else {"beginning": float(beginning)}
    same = bool(own) and backend.mean(own) == own
    if backend.mean({"same": float(same)})["same"] == 1.0:
        raise UserError(
            f"{data.name} gave streams that begin alike on all ranks: data.sharded is for a stream that is split by rank (node splitter, "
            "split_dataset_by_node); leave it out, and each worker takes its own samples of the whole stream"
        )


class Split:
    """The number of workers among which a stream was split by rank, in the checkpoints."""

    def __init__(self, name: str, workers: int) -> None:
        self._name = name
        self._workers = workers

    def state_dict(self) -> dict[str, Any]:
        """Return the number for a checkpoint."""
        return {"workers": self._workers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the number of a checkpoint; raises `UserError` if there are others now."""
        if state["workers"] != self._workers:
            raise UserError(
                f"{self._name} is split by rank (data.sharded) among {state['workers']} workers, and there are {self._workers} now, whose "
                "streams have other samples: go on with as many workers as before, or start a new run with init_from"
            )


class Beginning:
    """How many samples the data had when the run began, and a number that followed from some of them, in the checkpoints."""

    def __init__(self, data: Batches | Stream, *, sharded: bool) -> None:
        self.data = data
        self.content = None if sharded else data.beginning()
        self._kept: dict[str, Any] = {"samples": data.size, "content": self.content}
        self.doubt = ""
        """A warning that the samples are others now."""

    def state_dict(self) -> dict[str, Any]:
        """Return both for a checkpoint."""
        return self._kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with a checkpoint; raises `UserError` for another number of samples, from which the order of samples follows."""
        name, before, now = self.data.name, state["samples"], self.data.size
        if now != before:
            raise UserError(
                f"{name} gives {_samples(now)}, and gave {_samples(before)} when the run began: which samples a step trains on follows from "
                "their number, and what is trained already would not fit; give the data as it was, or begin a new run on the new data "
                "with these weights (init_from)"
            )
        known = None not in (self.content, state["content"])
        if known and state["content"] != self.content == self.data.beginning():
            self.doubt = (
                f"{name} gives other samples than when the run began: the training goes on with those that it gives now, and is not the one "
                "that it would have been"
            )
        self._kept = state


def _samples(size: int) -> str:
    return "a stream" if size == UNKNOWN_SIZE else f"{size:,} samples"
