"""A failing program made as plain as it can be and still fail."""

from __future__ import annotations

from collections.abc import Callable

from grammar import Choices

MOST_TRIES = 60


def shrunk(chosen: Choices, fails: Callable[[Choices], bool], tries: int = MOST_TRIES) -> Choices:
    """Try plainer programs one after the other, and go on with the first that fails, until none does."""
    done: set[str] = set()
    while True:
        for plainer in chosen.simpler():
            if str(plainer) in done:
                continue
            if len(done) >= tries:
                return chosen
            done.add(str(plainer))
            if fails(plainer):
                chosen = plainer
                break
        else:
            return chosen
