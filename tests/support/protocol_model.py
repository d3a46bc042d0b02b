"""A model of what supervisors of one run do to remote storage, each held up between two operations for as long as one likes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from explorer import Model

TARGET = 2
"""Steps of the training; every one is saved."""
Name = tuple[int, int]
"""Attempt and step of a checkpoint."""
LOST, DONE = "lost", "done"


@dataclass(frozen=True)
class Protocol:
    """What differs between the versions, on remote storage."""

    released_is_nobody: bool = False
    """A supervisor goes on if the newest claim was given free, whoever made it."""
    replaces_log: bool = False
    """A push writes the whole event log anew."""
    numbers_from_log: bool = False
    """The next attempt has the number after the last one in the log, which is pushed some time later."""
    overwrites_manifest: bool = False
    """A commit writes the manifest, whatever is there."""
    history_later: bool = False
    """Nothing is pushed before a commit."""


OLD = Protocol(
    released_is_nobody=True, replaces_log=True, numbers_from_log=True, overwrites_manifest=True, history_later=True
)
NEW = Protocol()


@dataclass(frozen=True)
class Supervisor:
    """One of the two, between two of its operations."""

    at: str = "look"
    newest: int = 0
    claim: int = 0
    base: tuple[str, ...] = ()
    """The log as it was pulled."""
    own: tuple[str, ...] = ()
    """What it logged itself."""
    listed: frozenset[Name] = frozenset()
    saw: frozenset[Name] = frozenset()
    """Checkpoints of others that were there when it chose one to go on from."""
    restored: bool = False
    attempt: int = 0
    step: int = 0
    staged: bool = False


@dataclass(frozen=True)
class Store:
    """Remote storage, and the two supervisors."""

    supervisors: tuple[Supervisor, ...] = (Supervisor(), Supervisor())
    claims: tuple[bool, ...] = ()
    """By number: whether it is live, or was given free."""
    numbers: frozenset[int] = frozenset()
    log: tuple[tuple[int, int, tuple[str, ...]], ...] = ()
    """Claim, begin, and what its supervisor wrote from there on."""
    objects: frozenset[tuple[Name, int]] = frozenset()
    """Checkpoint, and who wrote its files last."""
    manifests: frozenset[tuple[Name, int]] = frozenset()
    """Committed checkpoints and who wrote the files that they name; nobody (-1): it was given up."""
    ended: frozenset[tuple[int, int]] = frozenset()
    """Supervisors that exited with code 0, and the step that they had saved."""

    def read_log(self) -> tuple[str, ...]:
        """The log as it counts."""
        found: tuple[str, ...] = ()
        for _, begin, entries in self.log:
            found = found[:begin] + entries
        return found

    def committed(self) -> frozenset[Name]:
        return frozenset(name for name, writer in self.manifests if writer >= 0)


def remote(protocol: Protocol) -> Model[Store]:
    return Model(Store(), lambda store: steps(store, protocol), broken)


def broken(store: Store) -> str:
    attempts = [one.attempt for one in store.supervisors if one.attempt]
    if len(set(attempts)) < len(attempts):
        return "two attempts have one number"
    files = dict(store.objects)
    for name, writer in store.manifests:
        if writer >= 0 and files.get(name) != writer:
            return "a committed checkpoint is not what was written"
    history = store.read_log()
    for (attempt, _), writer in store.manifests:
        if writer >= 0 and f"attempt {attempt} of {writer}" not in history:
            return "a checkpoint is there without the history that explains it"
    for who, step in store.ended:
        if max((name[1] for name in store.committed()), default=0) < step:
            return "the checkpoint of a run that ended well is gone"
        if f"end of {who}" not in history:
            return "the history of a supervisor that ended well is gone"
    for who, one in enumerate(store.supervisors):
        others = {name for name, writer in store.manifests if writer >= 0 and writer != who}
        if one.restored and one.claim == len(store.claims) and not others <= one.saw:
            return "a supervisor that was lost has committed"
    return ""


def steps(store: Store, protocol: Protocol) -> Iterator[tuple[str, Store]]:
    for who, one in enumerate(store.supervisors):
        if one.attempt and not one.staged and one.step < TARGET:
            # Its workers train and write, whatever became of it.
            name = (one.attempt, one.step + 1)
            files = dict(store.objects) | {name: who}
            yield f"workers of {who} write", changed(store, who, one, staged=True, objects=frozenset(files.items()))
        if one.at not in (LOST, DONE):
            yield f"{who} {one.at}", operation(store, who, one, protocol)


def changed(store: Store, who: int, one: Supervisor, **changes: object) -> Store:
    of_store = {key: value for key, value in changes.items() if key in Store.__dataclass_fields__}
    of_one = {key: value for key, value in changes.items() if key not in of_store}
    supervisors = list(store.supervisors)
    supervisors[who] = replace(one, **of_one)  # type: ignore[arg-type]
    return replace(store, supervisors=tuple(supervisors), **of_store)  # type: ignore[arg-type]


def is_held(store: Store, one: Supervisor, protocol: Protocol) -> bool:
    newest = len(store.claims)
    return newest == one.claim or (protocol.released_is_nobody and not store.claims[-1])


AFTER = {
    "look": "claim", "claim": "pull", "pull": "list", "list": "check list", "check list": "clear", "clear": "restore",
    "restore": "number", "number": "check number", "check number": "train", "check push": "push", "push": "check commit",
    "check commit": "commit", "commit": "list old", "list old": "check old", "check old": "prune", "prune": "train",
    "check end": "push end", "push end": "check ended",
    "check ended": "release", "release": DONE,
}  # fmt: skip


def operation(store: Store, who: int, one: Supervisor, protocol: Protocol) -> Store:
    """One operation on the store, or a decision between two."""
    after = AFTER.get(one.at, one.at)
    if one.at.startswith("check"):
        return changed(store, who, one, at=after if is_held(store, one, protocol) else LOST)
    if one.at == "train":
        if one.step == TARGET:
            return changed(store, who, one, at="check end", own=(*one.own, f"end of {who}"))
        return changed(store, who, one, at="see files") if one.staged else store
    if one.at == "see files":
        following = "check commit" if protocol.history_later else "check push"
        return changed(store, who, one, at=following if (one.attempt, one.step + 1) in dict(store.objects) else LOST)
    return DEEDS[one.at](store, who, replace(one, at=after), protocol)


def _look(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    """At any time: the one before may have been silent for long."""
    return changed(store, who, one, newest=len(store.claims))


def _claim(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    if len(store.claims) != one.newest:
        return changed(store, who, one, at=LOST)
    return changed(store, who, one, claims=(*store.claims, True), claim=one.newest + 1)


def _pull(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    return changed(store, who, one, base=store.read_log())


def _list(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    known = {name for name, _ in store.manifests}
    return changed(store, who, one, listed=frozenset(name for name, _ in store.objects if name not in known))


def _clear(store: Store, who: int, one: Supervisor, protocol: Protocol) -> Store:
    known = {name for name, _ in store.manifests}
    dropped = one.listed - known
    manifests = store.manifests if protocol.overwrites_manifest else store.manifests | {(name, -1) for name in dropped}
    objects = frozenset((name, writer) for name, writer in store.objects if name not in dropped)
    return changed(store, who, one, manifests=manifests, objects=objects)


def _restore(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    committed = store.committed()
    step = max((name[1] for name in committed), default=0)
    return changed(store, who, one, step=step, saw=committed, restored=True)


def _number(store: Store, who: int, one: Supervisor, protocol: Protocol) -> Store:
    in_log = sum(entry.startswith("attempt") for entry in one.base)
    number = 1 + (in_log if protocol.numbers_from_log else max(store.numbers, default=0))
    own = (*one.own, f"attempt {number} of {who}")
    return changed(store, who, one, attempt=number, own=own, numbers=store.numbers | {number})


def _push(store: Store, who: int, one: Supervisor, protocol: Protocol) -> Store:
    if protocol.replaces_log:
        return changed(store, who, one, log=((0, 0, one.base + one.own),))
    others = [part for part in store.log if part[0] != one.claim]
    return changed(store, who, one, log=tuple(sorted([*others, (one.claim, len(one.base), one.own)])))


def _commit(store: Store, who: int, one: Supervisor, protocol: Protocol) -> Store:
    name = (one.attempt, one.step + 1)
    known = dict(store.manifests)
    if name in known and not protocol.overwrites_manifest:
        return changed(store, who, one, at=LOST)
    manifests = frozenset((known | {name: who}).items())
    return changed(store, who, one, manifests=manifests, step=one.step + 1, staged=False)


def _list_old(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    newest = max((name[1] for name in store.committed()), default=0)
    return changed(store, who, one, listed=frozenset(name for name in store.committed() if name[1] < newest))


def _prune(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    manifests = frozenset((name, writer) for name, writer in store.manifests if name not in one.listed)
    objects = frozenset((name, writer) for name, writer in store.objects if name not in one.listed)
    return changed(store, who, one, manifests=manifests, objects=objects)


def _release(store: Store, who: int, one: Supervisor, _: Protocol) -> Store:
    claims = tuple(live and number != one.claim for number, live in enumerate(store.claims, 1))
    return changed(store, who, one, claims=claims, ended=store.ended | {(who, one.step)})


DEEDS = {
    "look": _look, "claim": _claim, "pull": _pull, "list": _list, "clear": _clear, "restore": _restore, "number": _number,
    "push": _push, "commit": _commit, "list old": _list_old, "prune": _prune, "push end": _push, "release": _release,
}  # fmt: skip
