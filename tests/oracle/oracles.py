"""What must be true of a program's runs; each difference is one line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from grammar import STEPS, Choices
from torch.utils._pytree import tree_flatten
from trial import Seen, Trial, one_line

import dtrain
from dtrain.checkpoint.difference import first_difference

CLOSE = 1e-9
"""Largest relative difference of numbers that are computed in another order, in float64; what Keras gives of them is in float32."""
KNOWN = ("cannot step weights that are sharded", "which checkpoints do not hold")
"""Sentences that optimizers are refused with in the first step, or at the first checkpoint."""
ROUNDED = 1e-6
"""Of losses and rates in float32."""


class Invalid(Exception):
    """The program does not run by hand either."""


class Refused(Exception):
    """The program was refused in a sentence, before it trained; the message is that."""


def differences(trial: Trial) -> list[str]:
    """Run the program in every way and compare; raises `Refused` or `Invalid`."""
    chosen = trial.chosen
    try:
        trial.by_hand({step: list(range(int(chosen["batch"]))) for step in range(STEPS)})
    except Exception as error:  # noqa: BLE001  its own
        raise Invalid(f"{type(error).__name__}: {error}") from None
    undisturbed = trial.undisturbed()
    if undisturbed.code:
        if not undisturbed.history and undisturbed.refusal:
            raise Refused(one_line(undisturbed.refusal))
        if known := next((text for text in KNOWN if text in undisturbed.text), ""):
            raise Refused(known)
        return [f"undisturbed: exit code {undisturbed.code}: {undisturbed.text}"]
    found = [
        *samples(trial, undisturbed),
        *by_hand(trial, undisturbed),
        *metrics(trial, undisturbed),
        *loads(undisturbed),
    ]
    disturbed = trial.disturbed()
    if disturbed.code:
        return [*found, f"{chosen['event']}: exit code {disturbed.code}: {disturbed.text}"]
    if chosen["event"] in ("disk", "memory") and disturbed.attempts != 2:
        found.append(f"{disturbed.attempts} attempts")
    at, every = int(chosen["at"]), int(chosen["every"])
    if chosen["event"] == "disk" and disturbed.begins.get(2, at) < at // every * every:
        found.append(f"recovered from step {disturbed.begins[2]}")
    found += [*samples(trial, disturbed), *loads(disturbed)]
    if chosen["event"] in ("shrink", "grow"):
        return [*found, *at_another_size(trial, undisturbed, disturbed)]
    return [*found, *to_the_last_bit(undisturbed, disturbed)]


def samples(trial: Trial, seen: Seen) -> Iterator[str]:
    """Each sample is given once in each epoch, whatever worker has it."""
    size, given = int(trial.chosen["size"]), Counter[int]()
    for step in range(STEPS):
        ids = step_samples(seen, step)
        if len(ids) != int(trial.chosen["batch"]):
            yield f"step {step} had {len(ids)} samples"
        for one in ids:
            given[one] += 1
            if max(given.values()) - min(given[each] for each in range(size)) > 1:
                yield f"step {step}: sample {one} is given {given[one]} times before others"
                return


def step_samples(seen: Seen, step: int) -> list[int]:
    """The samples of a step in the order of the global batch."""
    return [one for rank in seen.passes.get(step, []) for one_pass in rank for one in one_pass["samples"]]


def by_hand(trial: Trial, seen: Seen) -> Iterator[str]:
    """Rates, losses and weights of the loop without dtrain, and the number of passes in training mode."""
    chosen = trial.chosen
    given = {step: step_samples(seen, step) for step in range(STEPS)}
    losses, rates, weights = trial.by_hand(given)
    for step, shown in seen.rates.items():
        if not np.allclose(shown, rates[step], rtol=ROUNDED if seen.keras else 0, atol=0):
            yield f"by hand: the rate of step {step} is {rates[step]}, and here {shown}"
            break
    for step, ranks in seen.passes.items():
        if any(len(rank) != trial.passes_a_step for rank in ranks) or len(ranks) != trial.workers:
            yield f"step {step} had {[len(rank) for rank in ranks]} passes"
            break
    if not is_global(chosen, trial.workers) or trial.is_unsteady(given):
        return
    if chosen["log"] == "1":
        for step, values in seen.history.items():
            if not math.isclose(
                values["loss"], losses[step - 1], rel_tol=ROUNDED if seen.keras else CLOSE, abs_tol=1e-9
            ):
                yield f"by hand: the loss of step {step - 1} is {losses[step - 1]!r}, and here {values['loss']!r}"
                break
    yield from weights_close(weights, seen.weights, "by hand", ROUNDED if seen.keras else CLOSE)


def metrics(trial: Trial, seen: Seen) -> Iterator[str]:
    """Each reported number is the mean over the ranks that gave it, under its own name."""
    chosen = trial.chosen
    if seen.keras and chosen["metrics"] == "nan":
        return
    if chosen["metrics"] == "none" or chosen["log"] != "1" or chosen["data"] == "noise" or trial.passes_a_step > 1:
        return
    rows = trial.module()["X"]
    for step, ranks in seen.passes.items():
        given: dict[str, list[tuple[float, int]]] = {}
        for (one,) in ranks:
            values = numbers(chosen, np.abs(rows[one["samples"]]).mean(), one["samples"], step)
            for name, value in values.items():
                given.setdefault(name, []).append((value, len(one["samples"]) if chosen["form"] == "task" else 1))
        wanted = {
            name: sum(value * count for value, count in parts) / sum(count for _, count in parts)
            for name, parts in given.items()
        }
        shown = {name: value for name, value in seen.history.get(step + 1, {}).items() if name != "loss"}
        if shown.keys() != wanted.keys() or not all(
            np.isclose(shown[name], wanted[name], equal_nan=True) for name in wanted
        ):
            yield f"step {step} reports {shown}, and its ranks gave {wanted}"
            return


def numbers(chosen: Choices, size: float, ids: list[int], step: int) -> dict[str, float]:
    """The metrics that the program computes of a batch of these samples."""
    odd = step % 2 if chosen["form"] != "task" else sum(ids) % 2
    return {
        "every": {"size": size},
        "odd": {"size": size} if odd else {},
        "missing": {"size": size} if ids[0] % 3 else {"other": 1.0},
        "nan": {"size": float("nan") if odd else size},
    }[chosen["metrics"]]


def weights_close(expected: Any, given: Any, what: str, close: float) -> Iterator[str]:
    """Whether weights are the same but for rounding."""
    for name, one in given.items():
        if not hasattr(one, "shape"):
            continue
        wanted, found = np.asarray(expected[name]), np.asarray(one)
        if not np.allclose(wanted, found, rtol=close, atol=close):
            yield f"{what}: {name} differs by {np.abs(wanted - found).max():.3g}"
            return


def is_global(chosen: Choices, workers: int) -> bool:
    """Whether the step is a function of the global batch alone, and of nothing drawn: not of a rank's part of it."""
    if chosen["dropout"] == "yes" or chosen["data"] == "noise" or chosen["extra"] == "attribute":
        return False
    whole = workers == 1 and chosen["passes"] != "halves"
    if not whole and (
        chosen["norm"] == "batch" or chosen["extra"] in ("mean", "counter", "extra_state") or chosen["loss"] == "sum"
    ):
        return False
    if workers > 1 and chosen["optimizer"] == "LBFGS":
        return False
    return workers == 1 or chosen["form"] == "task" or int(chosen["batch"]) % workers == 0


def loads(seen: Seen) -> Iterator[str]:
    """Every checkpoint that is kept can be read outside the process that wrote it."""
    for step in seen.run.checkpoints():
        try:
            dtrain.load(seen.run.path, step=step)
        except Exception as error:  # noqa: BLE001
            yield f"the checkpoint of step {step} cannot be read: {error}"


def to_the_last_bit(undisturbed: Seen, disturbed: Seen) -> Iterator[str]:
    """Everything that is saved, reported or seen in a step is the same."""
    if undisturbed.script is not None:
        (one, shape), (other, _) = tree_flatten(undisturbed.own_state), tree_flatten(disturbed.own_state)
        same = shape == tree_flatten(disturbed.own_state)[1] and all(map(np.array_equal, one, other))
        yield from [] if same else ["the script's own checkpoints differ"]
        yield from same_passes(undisturbed, disturbed)
        return
    if (text := first_difference(undisturbed.last, disturbed.last)) is not None:
        yield f"{text.name} {text.text}"
    mine, theirs = values_of(undisturbed.last), values_of(disturbed.last)
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            yield f"{name} is {mine.get(name)} and {theirs.get(name)}"
    history, other = undisturbed.history, disturbed.history
    if repr(history) != repr(other):
        pairs = ((step, values, other.get(step)) for step, values in history.items())
        yield f"metrics differ: {next((pair for pair in pairs if repr(pair[1]) != repr(pair[2])), 'more of them')}"
    yield from same_passes(undisturbed, disturbed)


def same_passes(undisturbed: Seen, disturbed: Seen) -> Iterator[str]:
    """Each rank saw the same samples, rates and modes in each step."""
    for step in range(STEPS):
        if undisturbed.passes.get(step) != disturbed.passes.get(step):
            yield f"step {step} saw {undisturbed.passes.get(step)} and {disturbed.passes.get(step)}"
            return


def at_another_size(trial: Trial, undisturbed: Seen, disturbed: Seen) -> Iterator[str]:
    """Samples and rates are the same; so are the weights, but for rounding, where they do not depend on parts of the batch."""
    for step in range(STEPS):
        one, other = step_samples(undisturbed, step), step_samples(disturbed, step)
        if one != other:
            yield f"step {step} had the samples {one} and {other}"
            break
    if trial.chosen["schedule"] != "plateau" and undisturbed.rates != disturbed.rates:
        yield f"rates: {undisturbed.rates} and {disturbed.rates}"
    unsteady = trial.is_unsteady({step: step_samples(undisturbed, step) for step in range(STEPS)})
    if (
        not unsteady
        and is_global(trial.chosen, 2)
        and is_global(trial.chosen, trial.workers)
        and is_global(trial.chosen, 3)
    ):
        yield from weights_close(
            undisturbed.weights, disturbed.weights, trial.chosen["event"], ROUNDED if undisturbed.keras else CLOSE
        )


def values_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds that is no tensor."""
    found: dict[str, Any] = {}
    for path in (folder / "values.json", folder / "registered.json"):
        found |= json.loads(path.read_text())["values"] if path.exists() else {}
    return found
