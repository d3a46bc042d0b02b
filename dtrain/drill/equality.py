"""Whether a drill's run ended with the same state as the undisturbed one, to the last bit, and if not, where they part."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dtrain.checkpoint import difference
from dtrain.checkpoint.names import folder_of
from dtrain.checkpoint.tensor_file import SUFFIX
from dtrain.drill.checks import History
from dtrain.record.events import CheckpointSaved

BIT_EQUAL = "bit-equal"
STEPS_BEFORE, STEPS_AFTER = 4, 2
"""Most steps up to the first that is seen to differ, and after it, whose operations are looked at."""


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


def explained(history: History, undisturbed: History) -> tuple[str, range]:
    """The first step whose loss differs, and the first tensor that differs in the first checkpoint that does; the steps, counted from 0,
    among which the first that differs is to be looked for, none if nothing tells."""
    mine, theirs = history.losses(), undisturbed.losses()
    steps = sorted(step for step in mine.keys() & theirs.keys() if mine[step] != theirs[step])
    texts = (
        [f"the loss differs from step {steps[0]} on: {mine[steps[0]]:.9g}, undisturbed {theirs[steps[0]]:.9g}"]
        if steps
        else []
    )
    parted, equal = steps[:1], 0
    for step in sorted({event.step for event in history.of(CheckpointSaved)}):
        if found := difference_at(history, undisturbed, step):
            texts.append(f"the checkpoints part at step {step}: {found}")
            parted.append(step)
            break
        equal = step if _comparable(history, undisturbed, step) else equal
    if not parted:
        return "no loss and no checkpoint that both runs still have tells where they part", range(0)
    last = min(parted)
    # The run is done once more: a checkpoint may be committed a step later, and what differs then shows a step later, too.
    return "; ".join(texts), range(max(min(equal, last - 1), last - STEPS_BEFORE), last + STEPS_AFTER)


def _how_far(history: History, undisturbed: History) -> str:
    mine, theirs = history.losses(), undisturbed.losses()
    steps = sorted(mine.keys() & theirs.keys())
    if not steps:
        return "the weights differ"
    last, first = steps[-1], next((step for step in steps if mine[step] != theirs[step]), None)
    if first is None:
        return "the weights differ, no loss does"
    return f"the weights differ: loss {mine[last]:.6g}, undisturbed {theirs[last]:.6g}; they part at step {first}"


def _comparable(history: History, undisturbed: History, step: int) -> bool:
    return all(_folder(each, step) is not None for each in (history, undisturbed))


def _folder(history: History, step: int) -> Path | None:
    with suppress(FileNotFoundError):
        folder = folder_of(history.run.checkpoints, step)
        return folder if any(folder.glob(f"*{SUFFIX}")) else None
    return None
