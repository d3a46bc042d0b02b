"""The group of all commands, which understands what people type that know other programs."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from dtrain.common.errors import UsageError

MEANT = {
    "cancel": ("stop", "saves and stops a run"),
    "check": ("plan", "checks a recipe and shows what it would start"),
    "config": ("explain", "says what a key of a recipe means"),
    "continue": ("resume", "goes on with a run"),
    "delete": ("rm", "removes runs that have ended"),
    "diff": ("compare", "puts runs beside each other"),
    "follow": ("attach", "watches a run"),
    "help": ("--help", "lists the commands, and dtrain COMMAND --help says what one does"),
    "info": ("status", "says how a run is doing, or how it went"),
    "kill": ("stop", "saves and stops a run, and dtrain stop --now does not save first"),
    "launch": ("run", "trains a recipe or a script"),
    "list": ("ps", "lists the runs"),
    "ls": ("ps", "lists the runs"),
    "new": ("init", "writes a recipe and a small task"),
    "remove": ("rm", "removes runs that have ended"),
    "restart": ("resume", "goes on with a run"),
    "search": ("tune", "finds the best values of a recipe out of many trials"),
    "show": ("status", "says how a run is doing, or how it went"),
    "start": ("run", "trains a recipe or a script; dtrain submit does so without this terminal"),
    "sweep": ("submit --sweep KEY=A,B,C", "starts a run for each value"),
    "tail": ("logs -f", "prints the workers' output as it comes"),
    "train": ("run", "trains a recipe or a script"),
    "validate": ("plan", "checks a recipe and shows what it would start"),
    "version": ("--version", "prints the version"),
    "watch": ("attach", "watches a run"),
}
"""A command of other programs → the one of dtrain that does it, and what that one does."""


class Commands(TyperGroup):
    """Names the right command for one that is known from elsewhere."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; raises `UsageError` for one of another program."""
        if args and args[0] not in self.commands and args[0] in MEANT:
            command, does = MEANT[args[0]]
            raise UsageError(f"there is no command '{args[0]}': dtrain {command} {does}")
        return super().resolve_command(ctx, args)
