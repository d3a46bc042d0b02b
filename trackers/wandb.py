"""Curves in Weights & Biases: one run there for the whole life of a run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtrain.api.tracker import Ending, Entry, TrackedRun

from .installation import missing

LONGEST_TAG = 64
"""Characters of a tag that W&B takes."""


@dataclass(frozen=True)
class WandbOptions:
    """The key belongs into the environment (WANDB_API_KEY) or into `wandb login`."""

    project: str | None = None
    """The recipe's name if not given."""
    entity: str | None = None
    """User or team; W&B's default if not given."""
    group: str | None = None
    """Runs with the same group are shown together."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""
    mode: Literal["online", "offline"] | None = None
    """offline: only into the run folder, to be sent later with `wandb sync`. When not given, WANDB_MODE says it."""


class Wandb:
    """Weights & Biases; its run has the id of the run here, for life."""

    Options = WandbOptions

    def __init__(self, options: WandbOptions) -> None:
        self._options = options

    @staticmethod
    def missing_here() -> str:
        return missing("wandb")

    def open(self, run: TrackedRun) -> None:
        """W&B keeps the first value of a step: entries that come again change nothing."""
        import wandb

        options = self._options
        self._run = wandb.init(
            id=run.id, name=run.id, project=options.project or run.name, entity=options.entity, group=options.group,
            tags=[*options.tags, *_labels(run)], notes=str(run.config.get("note") or "") or None, config=run.config, dir=str(run.folder), resume="allow", mode=options.mode,
            # What this process prints and takes says nothing about the run.
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )  # fmt: skip

    def log(self, entries: Sequence[Entry]) -> None:
        """W&B sends from a process of its own, which keeps what cannot be sent."""
        for entry in entries:
            mark = {f"mark/{entry.kind}": entry.text} if entry.kind else {}
            self._run.log(dict(entry.values) | mark, step=entry.step)
            if entry.kind == "requeue":
                self._run.mark_preempting()

    def close(self, ending: Ending | None) -> None:
        self._run.finish(exit_code=ending.exit_code if ending else 1)


def _labels(run: TrackedRun) -> list[str]:
    """The tags of the run, as the words that W&B has instead."""
    return [f"{name}:{value}"[:LONGEST_TAG] for name, value in dict(run.config.get("tags") or {}).items()]
