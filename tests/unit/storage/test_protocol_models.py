"""Models of what two supervisors of one run do to what they share, in every order, each held up for as long as one likes.

The protocol of dtrain 0.1.0 breaks its promises in these models, today's does not: so they would find it if it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from explorer import Model, explore
from protocol_model import DONE, LOST, NEW, remote


def test_two_supervisors_on_remote_storage_keep_every_promise() -> None:
    found, seen = explore(remote(NEW))
    assert found is None, found
    assert seen > 3_000, "both may be anywhere"


@pytest.mark.parametrize(
    ("part", "promise"),
    [
        ("released_is_nobody", "the history of a supervisor that ended well is gone"),
        ("replaces_log", "a checkpoint is there without the history that explains it"),
        ("numbers_from_log", "two attempts have one number"),
        ("overwrites_manifest", "a committed checkpoint is not what was written"),
        ("history_later", "a checkpoint is there without the history that explains it"),
    ],
)  # fmt: skip
def test_each_part_of_the_old_protocol_breaks_one_and_would_be_found(part: str, promise: str) -> None:
    found, _ = explore(remote(replace(NEW, **{part: True})))
    assert found
    assert found.promise == promise, found


# --- the lock of a file system without locks ---


@dataclass(frozen=True)
class Lock:
    """A mark in a file, or claims with numbers of their own; where each of two supervisors is, and what it believes."""

    mark: int = -1
    claims: tuple[str, ...] = ()
    """Number → live or left."""
    at: tuple[str, str] = ("away", "away")
    number: tuple[int, int] = (0, 0)


def lock_steps(lock: Lock, *, numbered: bool) -> Iterator[tuple[str, Lock]]:
    for who, at in enumerate(lock.at):

        def moved(to: str, who: int = who, **changes: object) -> Lock:
            return replace(lock, at=tuple(to if one == who else there for one, there in enumerate(lock.at)), **changes)  # type: ignore[arg-type]

        if at == "away":  # the other one may have been silent for long
            if numbered:
                number = tuple(len(lock.claims) + 1 if one == who else n for one, n in enumerate(lock.number))
                yield f"{who} takes it", moved("has it", claims=(*lock.claims, "live"), number=number)
            else:
                yield f"{who} takes it", moved("has it", mark=who)
        elif at == "has it":
            held = len(lock.claims) == lock.number[who] if numbered else lock.mark == who
            yield f"{who} looks", moved("has it" if held else "ends, lost")
            yield f"{who} is done", moved("ends")
        elif at.startswith("ends"):
            gone = "gone, lost" if "lost" in at else "gone"
            if numbered:
                claims = tuple("left" if n == lock.number[who] else one for n, one in enumerate(lock.claims, 1))
                yield f"{who} gives it back", moved(gone, claims=claims)
            else:
                yield f"{who} gives it back", moved(gone, mark=-1)


def lock_broken(lock: Lock, *, numbered: bool) -> str:
    last = max((0, 1), key=lambda who: lock.number[who]) if numbered else None
    for who, at in enumerate(lock.at):
        newer = lock.number[1 - who] > lock.number[who] if numbered else lock.mark == 1 - who
        if at == "ends, lost" and not newer and (last == who or not numbered):
            return "a supervisor was told that it lost a run that nobody else has"
    return ""


@pytest.mark.parametrize("numbered", [True, False])
def test_without_locks_only_numbered_claims_end_nobody_but_the_older_one(*, numbered: bool) -> None:
    found, _ = explore(
        Model(
            Lock(), lambda lock: lock_steps(lock, numbered=numbered), lambda lock: lock_broken(lock, numbered=numbered)
        )
    )
    assert (found is None) == numbered, found


# --- a commit in a folder that both see ---


@dataclass(frozen=True)
class Folder:
    """Staged and committed checkpoints of one step in a folder; what each of two supervisors is about to do."""

    names: frozenset[str] = frozenset({"staged 0"})
    at: tuple[str, str] = ("rename", "clear")
    """The first one has passed its last check, and is held up."""
    said: frozenset[int] = frozenset()
    """Supervisors that said that the step is saved."""


def folder_steps(folder: Folder, *, named: bool) -> Iterator[tuple[str, Folder]]:
    for who, at in enumerate(folder.at):

        def moved(to: str, names: frozenset[str], said: bool = False, who: int = who) -> Folder:  # noqa: FBT001, FBT002
            ats = tuple(to if one == who else there for one, there in enumerate(folder.at))
            return Folder(names, ats, folder.said | ({who} if said else set()))  # type: ignore[arg-type]

        final = f"final {who}" if named else "final"
        staged = f"staged {who}"
        if at == "clear":
            yield f"{who} clears what is staged", moved("stage", folder.names - {"staged 0"})
        elif at == "stage":
            yield f"{who} stages", moved("rename" if named else "set aside", folder.names | {staged})
        elif at == "rename" and not named:
            yield f"{who} begins", moved("set aside", folder.names)
        elif at == "set aside":
            taken = final in folder.names
            names = (folder.names - {final}) | {"damaged"} if taken else folder.names
            yield f"{who} makes room", moved("really rename", names)
        elif at in ("rename", "really rename"):
            if staged in folder.names:
                yield f"{who} renames", moved(DONE, (folder.names - {staged}) | {final}, said=True)
            else:
                yield f"{who} finds nothing staged", moved(LOST, folder.names)


def folder_broken(folder: Folder) -> str:
    if "damaged" in folder.names:
        return "a good checkpoint was set aside as damaged"
    there = any(name.startswith("final") for name in folder.names)
    return "" if there or not folder.said else "a checkpoint that was said to be there is not"


@pytest.mark.parametrize("named", [True, False])
def test_a_commit_that_was_held_up_harms_nothing_if_no_two_checkpoints_have_one_name(*, named: bool) -> None:
    found, _ = explore(Model(Folder(), lambda folder: folder_steps(folder, named=named), folder_broken))
    assert (found is None) == named, found
