"""Whether a drill's run ended with the same state as the undisturbed one, to the last bit, and if not, where they part."""

from __future__ import annotations

from pathlib import Path

from dtrain.checkpoint import difference
from dtrain.checkpoint.tensor_file import SUFFIX
from dtrain.cli.drill_checks import History
from dtrain.run.events import CheckpointSaved

BIT_EQUAL = "bit-equal"


def weights(history: History) -> str:
    """Digest of the newest checkpoint's."""
    saved = history.of(CheckpointSaved)
    return str(saved[-1].weights) if saved else ""


def compared(history: History, undisturbed: History) -> str:
    """`bit-equal` if weights and, where that can be told, everything else in the last checkpoints are the same; else how they differ."""
    if weights(history) != weights(undisturbed):
        return _how_far(history, undisturbed)
    found = difference_at(history, undisturbed, history.saved_step)
    return f"the weights are bit-equal, {found}" if found else BIT_EQUAL


def difference_at(history: History, undisturbed: History, step: int) -> str:
    """The first tensor that differs in the checkpoints of a step; '' if none does, or if one of them is not there."""
    one, other = (_folder(each, step) for each in (history, undisturbed))
    if one is None or other is None:
        return ""
    try:
        found = difference.first_difference(one, other)
    except (OSError, ValueError) as error:
        return f"the checkpoints of step {step} cannot be compared: {error}"
    return f"{found.name} {found.text}" if found else ""


def explained(history: History, undisturbed: History) -> str:
    """The first step whose loss differs, and the first tensor that differs in the first checkpoint that does."""
    mine, theirs = history.losses(), undisturbed.losses()
    steps = sorted(step for step in mine.keys() & theirs.keys() if mine[step] != theirs[step])
    texts = (
        [f"the loss differs from step {steps[0]} on: {mine[steps[0]]:.9g}, undisturbed {theirs[steps[0]]:.9g}"]
        if steps
        else []
    )
    for step in sorted({event.step for event in history.of(CheckpointSaved)}):
        if found := difference_at(history, undisturbed, step):
            texts.append(f"the checkpoints part at step {step}: {found}")
            break
    return "; ".join(texts) or "no loss and no checkpoint that both runs still have tells where they part"


def _how_far(history: History, undisturbed: History) -> str:
    mine, theirs = history.losses(), undisturbed.losses()
    steps = sorted(mine.keys() & theirs.keys())
    if not steps:
        return "the weights differ"
    last, first = steps[-1], next((step for step in steps if mine[step] != theirs[step]), None)
    if first is None:
        return "the weights differ, no loss does"
    return f"the weights differ: loss {mine[last]:.6g}, undisturbed {theirs[last]:.6g}; they part at step {first}"


def _folder(history: History, step: int) -> Path | None:
    folder = history.run.checkpoints / f"step-{step:08d}"
    return folder if any(folder.glob(f"*{SUFFIX}")) else None
