"""The combinations that `dtrain bench` compares: of the recipes and of the values of `--over`, each as a short run
of its own."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.common.errors import UsageError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control.overrides import Overrides
from dtrain.job.job import Checkpoint, Job, Notify
from dtrain.launch import recipe, registry, sweep
from dtrain.launch.recipe import Override
from dtrain.show.render import counted

OPTION = "--over"
WORKERS = "resources.workers"
PLACE = re.compile(r"^(--\S+ .*?|[^ ].*?:\d+:\d+): (?=\S)")
"""The place in front of a message."""
EVALUATE_STEPS = 50
"""Most global batches of held-out data that are looked at in the end."""
SCRIPT = "a script has its own loop, whose steps dtrain does not see: bench measures tasks and functions"


@dataclass(frozen=True)
class Variant:
    """One combination of recipe and values."""

    recipe: Path
    name: str
    """Name of the recipe: the file's, or its path if another has the same."""
    values: dict[str, str]
    """Key of `--over` → value, as they were typed."""
    label: str
    command: str
    """The command that trains it in full."""
    job: Job | None = None
    """The short run that measures it; None if there is a problem."""
    problem: str = ""
    """Why it cannot run."""


@dataclass(frozen=True)
class Length:
    """How long each run is."""

    steps: int

    @property
    def log_every(self) -> int:
        """Number of steps between two reports."""
        return max(1, self.steps // 10)

    @property
    def warm_up(self) -> int:
        """Steps that do not count: two reports."""
        return 2 * self.log_every


def variants(recipes: Sequence[Path], overs: Sequence[str], given: Overrides, runs: Path, steps: int) -> list[Variant]:
    """Return all combinations, those that cannot run with the reason. Raises `UsageError` if none can, or if a name
    is unknown."""
    members = sweep.members(overs, OPTION)
    _check_names(members)
    paths = list(dict.fromkeys(recipes))
    stems = [path.stem for path in paths]
    found, texts = list[Variant](), list[str]()
    for path in paths:
        if not path.is_file():
            recipe.load(path)  # says what is wrong with it
        for member in members:
            name = path.stem if stems.count(path.stem) == 1 else str(path)
            variant, text = _variant(path, member, given, runs, name, several=len(paths) > 1)
            found.append(variant)
            texts += text.splitlines()
    if all(variant.job is None for variant in found):
        messages = {PLACE.sub("", text): text for text in reversed(texts)}
        raise UsageError(
            "\n".join(reversed(messages.values())), "None of the combinations can run; nothing was started."
        )
    batches = [variant.job.train.global_batch for variant in found if variant.job]
    return [_measuring(variant, steps, max(batches)) for variant in found]


def _check_names(members: Sequence[Sequence[Override]]) -> None:
    """A plugin that does not exist is a mistake of typing, not a combination that cannot run."""
    for member in members:
        for path, value, source in member:
            for kind in recipe.PLUGIN_KINDS:
                known = list(registry.installed(kind))
                if path in ((kind,), (kind, "name")) and value not in known:
                    raise UsageError(f"{source}: unknown {kind} '{value}'. {nearest(str(value), known)}")


def _variant(
    path: Path, member: Sequence[Override], given: Overrides, runs: Path, name: str, *, several: bool
) -> tuple[Variant, str]:
    """Return one combination and the full text of its problem."""
    values = {".".join(where): source.partition("=")[2] for where, _, source in member}
    label = _label(values, name if several or not values else "")
    variant = Variant(path, name, values, label, _command(path, given, member))
    try:
        # A strategy before its options, in whatever order they were typed.
        job = recipe.load(path, [*given, *sorted(member, key=lambda one: len(one[0]))], runs=runs)
    except UsageError as error:
        text = str(error)
        return replace(variant, problem="; ".join(PLACE.sub("", line) for line in error.message.splitlines())), text
    if job.kind == "script":
        return replace(variant, problem=SCRIPT), f"{path}: {SCRIPT}"
    return replace(variant, job=sweep.named(replace(job, name=f"bench-{job.name}"), member)), ""


def _label(values: dict[str, str], name: str) -> str:
    """`ddp, 2 workers, compile=true`."""
    parts = [name] if name else []
    for key, value in values.items():
        if key in ("strategy", "strategy.name", "cluster", "cluster.name"):
            parts.append(value)
        elif key == WORKERS and value.isdigit():
            parts.append(counted(int(value), "worker"))
        else:
            parts.append(f"{key.rpartition('.')[2]}={value}")
    return ", ".join(parts)


def _command(path: Path, given: Overrides, member: Sequence[Override]) -> str:
    words = ["dtrain run", shlex.quote(str(path))]
    for source in dict.fromkeys(source for _, _, source in (*given, *sorted(member, key=lambda one: len(one[0])))):
        option, _, value = source.partition(" ")
        words.append(f"{'--set' if option == OPTION else option} {shlex.quote(value)}")
    return " ".join(words)


def _measuring(variant: Variant, steps: int, largest_batch: int) -> Variant:
    """With a job that trains on as many samples as all the others, and does nothing else that takes time."""
    job = variant.job
    if job is None:
        return variant
    length = Length(math.ceil(steps * largest_batch / job.train.global_batch))
    train = replace(
        job.train, steps=length.steps, epochs=None, log_every=length.log_every, evaluate_every=None, stop_when=None,
        evaluate_steps=min(job.train.evaluate_steps or EVALUATE_STEPS, EVALUATE_STEPS),
    )  # fmt: skip
    short = replace(
        job, train=train, checkpoint=Checkpoint(every_steps=length.steps, keep=1), notify=Notify(), track=(),
        recovery=replace(job.recovery, restarts=0),
    )  # fmt: skip
    return replace(variant, job=short)
