"""The claims of a run's supervisors on remote storage, numbered: the highest number has the run, also when it was given free.

Where the store has conditional writes, only one of several supervisors gets a number. The number is the fencing token: a supervisor
looks whether its own is still the highest before it writes there, and its number is in the names of what it writes. Each renews and
releases its own claim alone. When a claim was made is what the store's own clock says.
"""

from __future__ import annotations

import json
import time

from dtrain.common.errors import require_format
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.message import field_names
from dtrain.common.processes import boot_id
from dtrain.common.serde import checked, from_dict, to_dict
from dtrain.record.lock import SILENT_SECONDS, Lease, taken_over
from dtrain.storage.object_store import ObjectStore

CLAIMS = "supervisors"
"""Folder of the claims, each named by its number."""
FORMAT = 2
"""Format number of a claim."""
CLOCK = "clock"
"""An object that is written only to learn the store's time."""
UNKNOWN = "somebody unknown"
"""Whose claim is not written yet, or cannot be read."""


@dataclass(frozen=True)
class Claim:
    """A supervisor's claim on a run."""

    mark: str
    """Mark of the lease; '': the run was released."""
    place: str
    """The boot of its machine (`boot_id`), for people."""
    format: int = 1
    """Format number, which dtrain 0.1.0 did not write."""


class RunClaim:
    """This supervisor's claim."""

    def __init__(self, remote: ObjectStore, number: int, mark: str) -> None:
        self._remote = remote
        self.number = number
        self._mark = mark
        self._renew_at = time.monotonic() + SILENT_SECONDS / 4

    def check(self) -> None:
        """Raises `LeaseTaken` if another claim was made since, and `StorageError` if that cannot be known."""
        number = newest(self._remote)
        if number != self.number:
            holder = _read(self._remote, number)
            raise taken_over(holder.mark if holder else "")

    def renew(self) -> None:
        """Say again that this supervisor lives, when the claim is about to be taken for a dead one's."""
        if time.monotonic() >= self._renew_at:
            self._remote.write(_name(self.number), _text(self._mark))
            self._renew_at = time.monotonic() + SILENT_SECONDS / 4

    def release(self) -> None:
        """This supervisor has given the run free."""
        self._remote.write(_name(self.number), _text(""))

    @property
    def name(self) -> str:
        """Of the claim's object."""
        return _name(self.number)


def take(remote: ObjectStore, lease: Lease) -> RunClaim | None:
    """Claim the run whose lock this supervisor has; None: another supervisor lives elsewhere, or was faster.

    A claim is dead if it was silent for long, or if the supervisor of before had the lock that is held now, on this boot of the machine."""
    number = newest(remote)
    holder = _read(remote, number)
    require_format(f"{remote.url}/{_name(number)}", holder.format if holder else 1, FORMAT)
    if holder and holder.mark:
        died_here = lease.before and holder.mark == lease.before.mark and not lease.before.may_live
        if not died_here and age_seconds(remote) < SILENT_SECONDS:
            return None
    if not remote.create(_name(number + 1), _text(lease.mark)):
        return None
    if (
        newest(remote) != number + 1
    ):  # this one was held up: others made the same number, then a higher one, and deleted it
        remote.delete([_name(number + 1)])
        return None
    remote.delete(name for name in remote.sizes(CLAIMS) if _number(name) <= number)
    return RunClaim(remote, number + 1, lease.mark)


def newest(remote: ObjectStore) -> int:
    """The number of the newest claim; 0 if there was never one."""
    return max((_number(name) for name in remote.sizes(CLAIMS)), default=0)


def claimed(remote: ObjectStore) -> Claim | None:
    """Who supervises the run of this folder, as far as anybody has said."""
    claim = _read(remote, newest(remote))
    return claim if claim and claim.mark else None


def age_seconds(remote: ObjectStore) -> float:
    """How long ago the newest claim was made or renewed, by the store's clock; writes to the store."""
    remote.write(CLOCK, b"")
    return remote.modified(CLOCK) - remote.modified(_name(newest(remote)))


def renewed(remote: ObjectStore) -> float:
    """When the newest claim was made or renewed, in seconds since 1970 of the store's clock."""
    return remote.modified(_name(newest(remote)))


def _read(remote: ObjectStore, number: int) -> Claim | None:
    """A claim; None if there is none of this number."""
    text = remote.read(_name(number)) if number else None
    if text is None:
        return None
    try:
        written = json.loads(text)
        return checked(from_dict(Claim, {name: written[name] for name in field_names(Claim) if name in written}))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Claim(UNKNOWN, "")


def _text(mark: str) -> bytes:
    return json.dumps(to_dict(Claim(mark, boot_id(), FORMAT))).encode()


def _name(number: int) -> str:
    return f"{CLAIMS}/{number:08d}"


def _number(name: str) -> int:
    last = name.rpartition("/")[2]
    return int(last) if last.isdigit() else 0
