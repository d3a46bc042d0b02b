"""Checkpoints: staged by the workers, committed by the supervisor, verified before use.

Only the supervisor commits, and only parts of the attempt it runs now: a stale worker can write, but not be believed. A store that
was given the supervisor's lease raises `LeaseTaken` instead of a change once another supervisor has taken over the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from dtrain.common.errors import CheckpointError, UsageError
from dtrain.common.files import digest, is_safe_name
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import JsonObject, to_dict

MANIFEST = "manifest.json"
FORMAT = 2
"""Of manifests and of what they list; 1, or none: dtrain 0.1.0, which pickled values that are no tensors."""
QUARANTINED_KEPT = 2
"""Damaged checkpoints that stay for somebody to look at."""
READERS = 8
DIGESTS = 1 << 256
"""Digests of weights are added up modulo this, so that it does not matter which rank writes which (AdHash, Bellare and
Micciancio 1997)."""


Files = dict[str, tuple[int, str]]
"""Name → size in bytes and digest (`files.digest`)."""

Stays = Callable[[list[int]], Collection[int]]
"""From the steps of the committed checkpoints, newest first, to those that are kept."""


@dataclass(frozen=True)
class CheckpointShard:
    """The files that one worker wrote."""

    files: Files
    weights: str
    """Digest as in `SnapshotFiles.weights`."""


@dataclass(frozen=True)
class CheckpointOrigin:
    """The training that wrote a checkpoint."""

    strategy: str
    workers: int
    run: str


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed checkpoint."""

    name: str
    step: int
    """Steps that are done in it."""
    bytes: int
    weights: str
    """Hex digest over all workers' model state; equal weights give equal digests at the same strategy and size."""


@dataclass(frozen=True)
class Quarantined:
    """A damaged checkpoint that was set aside."""

    folder: str
    """Where it is now."""
    problem: str


@dataclass(frozen=True)
class Manifest:
    """The list of a checkpoint's files with their digests, and a digest of itself."""

    step: int
    bytes: int
    weights: str
    files: Files
    text: str
    """As it is written."""

    def committed(self, name: str) -> CheckpointInfo:
        """The checkpoint of this name."""
        return CheckpointInfo(name, self.step, self.bytes, self.weights)


class CheckpointStore(Protocol):
    """Where the checkpoints of a run are kept."""

    def new_attempt(self, after: int) -> int:
        """Reserve the number of the next attempt, above `after` and above all that were ever reserved in this run: no two supervisors
        get the same one. Raises `StorageError` and `LeaseTaken`."""

    def staging(self, attempt: int, step: int) -> Path:
        """Where the workers of a node write the checkpoint of a step; no reader looks there."""

    def publish(self, attempt: int, step: int, files: Files) -> None:
        """Called by a worker when its files are staged: make them visible to the supervisor."""

    def clear_staging(self) -> None:
        """Delete staged checkpoints that earlier attempts left unfinished."""

    def commit(self, attempt: int, step: int, parts: list[CheckpointShard], origin: CheckpointOrigin) -> CheckpointInfo:
        """Make the staged parts a checkpoint; raises `CheckpointError` if a file is not what its worker wrote."""

    def abandon(self, attempt: int, step: int) -> None:
        """Drop a staged checkpoint that cannot be finished."""

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, newest first; they are not verified."""

    def latest_valid(self) -> Iterator[CheckpointInfo | Quarantined]:
        """Walk from the newest checkpoint back: yields each damaged one as it is quarantined, and ends with the first valid one, if
        there is any."""

    def verified(self, step: int | None = None) -> tuple[Path, Manifest]:
        """The committed checkpoint of a step, the newest if not given, in a folder on this node: every file of it is there and is
        what was written. Changes nothing in the run. Raises `CheckpointError`, and `UsageError` if there is none of that step."""

    def prune(self, stays: Stays) -> None:
        """Delete committed checkpoints but those that stay, and all but the newest quarantined ones; a half-deleted one has no
        manifest and is no checkpoint."""

    def room(self) -> int | None:
        """Return the free bytes where workers stage checkpoints, if the deletion of committed ones frees some there."""

    def local_folder(self, name: str, attempt: int, *, whole: bool = True) -> Path:
        """The folder of a committed checkpoint on this node. Without `whole`, tensors may be missing until they are fetched."""

    def fetch(self, folder: Path, attempt: int, files: Collection[str]) -> None:
        """Have these files in a local folder; waits. Raises `CheckpointError` if one is not what was written."""


def manifest_of(attempt: int, step: int, parts: list[CheckpointShard], origin: CheckpointOrigin) -> Manifest:
    """The manifest of these parts, in the order of ranks."""
    files = {name: entry for part in parts for name, entry in part.files.items()}
    weights = f"{sum(int(part.weights or '0', 16) for part in parts) % DIGESTS:064x}"
    size = sum(size for size, _ in files.values())
    body = {
        "format": FORMAT,
        "step": step,
        "attempt": attempt,
        "weights": weights,
        "bytes": size,
        "files": files,
    } | to_dict(origin)
    return Manifest(step, size, weights, files, json.dumps(body | {"digest": _digest(body)}, indent=1))


def parsed(text: bytes | str | None) -> Manifest | str:
    """A manifest as it was read (None: it is not there), or what is wrong with it. Raises `CheckpointError` for one of a newer version:
    it is not damaged, and must not be set aside."""
    if text is None:
        return "its manifest is gone"
    try:
        body = json.loads(text)
        whole = body.pop("digest") == _digest(body)  # of every format alike
        if whole and body.get("format", 1) > FORMAT:
            raise CheckpointError(
                f"a checkpoint has the format {body['format']}, and this dtrain reads up to {FORMAT}",
                "A newer version of dtrain wrote it: update.",
            )
        files = {name: (int(size), str(digest)) for name, (size, digest) in body["files"].items()}
        unsafe = [name for name in files if not is_safe_name(name)]
        if unsafe:
            return f"its manifest names a file outside the checkpoint: {unsafe[0]!r}"
        if not whole:
            return "its manifest is not what was written (its digest differs)"
        return Manifest(
            int(body["step"]),
            int(body["bytes"]),
            str(body["weights"]),
            files,
            text if isinstance(text, str) else text.decode(),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return f"its manifest cannot be read: {type(error).__name__}: {error}"


def chosen_step(steps: Sequence[int], step: int | None) -> int:
    """A step, or the newest of the committed ones, which come first; raises `UsageError` if there is no such checkpoint."""
    if not steps:
        raise UsageError("this run has no checkpoint yet", "Wait for its first one, or choose another run.")
    if step is None or step in steps:
        return steps[0] if step is None else step
    raise UsageError(f"there is no checkpoint of step {step}", f"There are those of the steps {numbers_of(steps)}.")


def numbers_of(steps: Sequence[int]) -> str:
    """Steps for a message, in rising order."""
    return ", ".join(map(str, sorted(steps)))


def refused(step: int, problem: str, steps: Sequence[int]) -> CheckpointError:
    """The error for a checkpoint that somebody asked for and that is damaged."""
    others = [other for other in steps if other != step]
    hint = (
        f"Take another one: there are those of the steps {numbers_of(others)}."
        if others
        else "It is the only one of this run."
    )
    return CheckpointError(f"the checkpoint of step {step} cannot be used: {problem}", hint)


def verify(files: Files, check: Callable[[str, tuple[int, str]], str]) -> str:
    """Describe what is wrong with the files of a checkpoint, by a check of each by its name and entry, or '' if
    every byte is as written."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        for name, problem in zip(files, pool.map(check, files.keys(), files.values()), strict=True):
            if problem:
                return f"{name} {problem}"
    return ""


def _digest(manifest: JsonObject) -> str:
    return str(digest(json.dumps(manifest, sort_keys=True).encode()).hexdigest())
