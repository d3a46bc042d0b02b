"""The states of a supervisor, and which may follow which."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """States of a supervisor."""

    PROVISIONING = "provisioning"
    """Waiting for enough nodes and for the newest valid checkpoint."""
    TRAINING = "training"
    """An attempt is under way."""
    BACKING_OFF = "backing off"
    """A failed attempt is answered with another one, after a pause."""
    ENDED = "ended"
    """There is a result."""


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.PROVISIONING: (State.TRAINING, State.ENDED),
    State.TRAINING: (State.PROVISIONING, State.BACKING_OFF, State.ENDED),
    State.BACKING_OFF: (State.PROVISIONING,),
    State.ENDED: (),
}


class Phase(Enum):
    """States of an attempt."""

    RENDEZVOUS = "rendezvous"
    RUNNING = "running"
    SETTLING = "settling"
    """A failure is known, but maybe not its cause: wait a moment for the other workers' reports."""
    ENDING = "ending"
    """All workers are being killed."""
    COMMITTING = "committing"
    """All workers have left; a checkpoint is still being committed."""
    OVER = "over"
