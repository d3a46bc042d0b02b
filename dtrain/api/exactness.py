"""Abilities that a strategy and its training backend need for `train.exact`: the same bits on every number of
workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from dtrain.job.job import Job


@runtime_checkable
class SumsExactly(Protocol):
    """A strategy whose weights are the same to the last bit on every number of workers, if the job asks for it (`train.exact`)."""

    def inexact(self, job: Job) -> list[str]:
        """Pure. What keeps this job from it, each with what to do instead."""


@runtime_checkable
class ChecksGradients(Protocol):
    """A training backend that can tell whether a computation gave the same gradients as another one (`train.exact`)."""

    def gradient_checksums(self) -> list[int]:
        """Return, for each shard of the newest step, the sum of its gradient's bits modulo 2^32; see
        `dtrain.record.gradient_ledger`."""


@runtime_checkable
class PassesShards(Protocol):
    """A training backend that lets a function compute the shards of a step one by one (`train.exact`)."""

    def shard_passes(self, batch: Any, seeds: Sequence[int]) -> Iterator[Any]:
        """Equal parts of this worker's batch, one for each seed. What was computed of a part (forward and backward) when the next
        one is asked for is a pass of its own; after the last one the gradients are the mean over all shards of all ranks."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A training backend that can tell processors, and builds of its framework, whose arithmetic differs."""

    def fingerprints(self) -> list[str]:
        """Collective. Of each rank, the digest of a small computation, whose bits depend on the kernels that it ran in."""
