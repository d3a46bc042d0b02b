"""The claims of a run's supervisors on remote storage, numbered: the highest number has the run.

Where the store has conditional writes, only one of several supervisors gets a number. Each renews its own claim alone, so that
one that was held up never undoes the claim of its successor. When a claim was made is what the store's own clock says.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dtrain.common.serde import from_dict, to_dict
from dtrain.storage.object_store import ObjectStore

CLAIMS = "supervisors"
"""Folder of the claims, each named by its number."""
CLOCK = "clock"
"""An object that is written only to learn the store's time."""


@dataclass(frozen=True)
class Claim:
    """A supervisor's claim on a run."""

    mark: str
    """Mark of the lease; '': the run was released."""
    place: str
    """Host and run folder; in that very folder, the run's lock says more."""


def newest(remote: ObjectStore) -> int:
    """The number of the newest claim; 0 if there was never one."""
    return max((_number(name) for name in remote.sizes(CLAIMS)), default=0)


def claimed(remote: ObjectStore) -> Claim | None:
    """Who supervises the run of this folder, as far as anybody has said."""
    number = newest(remote)
    text = remote.read(_name(number)) if number else None
    claim = from_dict(Claim, json.loads(text)) if text else None
    return claim if claim and claim.mark else None


def claim(remote: ObjectStore, mark: str, run: Path, above: int | None = None) -> int | None:
    """Be the run's supervisor: the number of the new claim, or None if somebody else was faster.

    `above` is the number of the claim that was found to be dead; the newest one if it is not given."""
    number = (newest(remote) if above is None else above) + 1
    if not remote.create(_name(number), _text(mark, run)):
        return None
    remote.delete(name for name in remote.sizes(CLAIMS) if _number(name) < number)
    return number


def renew(remote: ObjectStore, mark: str, run: Path, number: int) -> None:
    """Say again that the supervisor of this claim lives, or with an empty mark that it has given the run free."""
    remote.write(_name(number), _text(mark, run))


def age_seconds(remote: ObjectStore) -> float:
    """How long ago the newest claim was made or renewed, by the store's clock; writes to the store."""
    remote.write(CLOCK, b"")
    return remote.modified(CLOCK) - remote.modified(_name(newest(remote)))


def place(run: Path) -> str:
    """Host and run folder of the supervisor, as a claim names them."""
    return f"{os.uname().nodename}:{run.resolve()}"


def renewed(remote: ObjectStore) -> float:
    """When the newest claim was made or renewed, in seconds since 1970 of the store's clock."""
    return remote.modified(_name(newest(remote)))


def _text(mark: str, run: Path) -> bytes:
    return json.dumps(to_dict(Claim(mark, place(run)))).encode()


def _name(number: int) -> str:
    return f"{CLAIMS}/{number:08d}"


def _number(name: str) -> int:
    last = name.rpartition("/")[2]
    return int(last) if last.isdigit() else 0
