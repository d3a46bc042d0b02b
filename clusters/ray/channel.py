"""The way to the agent of one node of a run on Ray."""

from __future__ import annotations

from typing import Any

from dtrain.api.protocol import Command, encode


class RayChannel:
    """The way to the agent of one bundle."""

    def __init__(self, actor: Any, number: int, group: Any, bundle: int) -> None:
        self.actor = actor
        self.number = number
        """Of the run's node."""
        self.group = group
        self.bundle = bundle
        """Number of its bundle in the placement group."""
        self.node_id = ""
        """Where the actor is, once it is somewhere."""

    def send(self, command: Command) -> None:
        self.actor.send.remote(encode(command))
