"""What the section `tune` of a recipe means: the values that a key can have, and the number that a trial is judged by. Pure."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from dtrain.api.plan import Problem
from dtrain.common import durations
from dtrain.common.errors import UserError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job import entrypoint, task_class
from dtrain.job.job import Job
from dtrain.job.tune import Tune
from dtrain.record.metric_curves import HELD_OUT, Curve, lower_is_better

PBT = "pbt"
EARLY_STOPS = {"none": 1.0, "asha": 1 / 3, "hyperband": 1 / 3, "median": 1 / 2, "percentile": 1 / 4, PBT: 3 / 4}
"""How trials are stopped early → share of them that goes on at a rung."""
TRIALS = 20
"""Trials of a study whose recipe does not name their number."""
GRID = "grid"
HISTORY = ("global_batch", "seed", "shuffle", "shards", "exact")
"""Keys of `train` that decide which samples a step trains on: they cannot change between two steps of one run."""
FIXED = {"train.steps", "train.epochs", *(f"train.{key}" for key in HISTORY)}
"""Keys that cannot change while a run trains."""
LEAST_POPULATION = 2
FUNCTION = "function"
"""Kind of a measure that a function of the user's computes."""
CALL = re.compile(r"(log|uniform|int)\(([^()]*)\)")
MEASURE = re.compile(r"(?:(best|last|mean)\(\s*([^(),]+?)\s*(?:,\s*(\d+)\s*)?\)|([^(),]+))")
SAMPLES = re.compile(r"(\d+(?:\.\d+)?)([kKMG]?)")
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
FORMS = "write a list [a, b], uniform(a, b), log(a, b), int(a, b, step=s) or int(a, b, log)"


@dataclass(frozen=True)
class Domain:
    """The values that one key can have: those of a list, or all between two ends."""

    kind: Literal["choice", "float", "int"]
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: int = 1
    log: bool = False

    def examples(self) -> list[Any]:
        """The values that a recipe is checked with: every one of a list, or both ends."""
        return list(self.choices) or [self.low, self.high]

    def grid(self) -> list[Any]:
        """Every value; none if there is no end of them."""
        if self.kind == "int" and not self.log:
            return list(range(int(self.low), int(self.high) + 1, self.step))
        return list(self.choices)


def domain(value: Any) -> Domain:
    """Read what is tried for a key; raises `ValueError` that says what is wrong."""
    if isinstance(value, list):
        return _choice(value)
    found = CALL.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        shown = value if isinstance(value, str) else f"{value!r} is one value, and there is nothing to choose"
        raise ValueError(f"{shown}: {FORMS}")
    kind, words = found[1], [word.strip() for word in found[2].split(",")]
    numbers = [_number(word, kind) for word in words if "=" not in word and word != "log"]
    named = dict(word.split("=", 1) for word in words if "=" in word)
    logarithmic = kind == "log" or "log" in words
    if len(numbers) != 2 or len(numbers) + len(named) + ("log" in words) != len(words) or set(named) - {"step"}:
        raise ValueError(f"{value}: {FORMS}")
    if kind != "int" and (named or "log" in words):
        raise ValueError(f"{value}: only int(a, b) takes a step or log; {FORMS}")
    low, high = numbers
    if logarithmic and low <= 0:
        raise ValueError(f"{value}: a logarithm has no {low:g}: begin above 0, or write uniform({low:g}, {high:g})")
    if low >= high:
        raise ValueError(f"{value}: the first end must be below the second")
    step = _number(named.get("step", "1"), "int")
    if step < 1 or (logarithmic and step != 1):
        raise ValueError(f"{value}: a step is a whole number above 0, and not for log")
    return Domain("int" if kind == "int" else "float", (), low, high, int(step), logarithmic)


def trials_of(tune: Tune) -> int:
    """Return how many trials a study has if nothing ends it before."""
    if tune.sampler != GRID:
        return tune.trials or TRIALS
    whole = math.prod(len(domain(value).grid()) for value in tune.over.values())
    return min(tune.trials or whole, whole)


def samples_of(text: str | int) -> int | None:
    """The number of samples in 500k, 10M or 2G; None if it is none."""
    found = SAMPLES.fullmatch(str(text))
    number = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    return number or None


def _choice(values: list[Any]) -> Domain:
    if not values:
        raise ValueError("the list is empty: name at least one value")
    for value in values:
        if [repr(one) for one in values].count(repr(value)) > 1:
            raise ValueError(f"{value!r} stands in the list twice")
    return Domain("choice", tuple(values))


def _number(word: str, kind: str) -> float:
    try:
        value = int(word) if kind == "int" else float(word)
    except ValueError:
        what = "whole number" if kind == "int" else "number"
        raise ValueError(f"{word!r} is no {what}: {FORMS}") from None
    if not math.isfinite(value):
        raise ValueError(f"{word} is no end of a range")
    return value


@dataclass(frozen=True)
class Measure:
    """The number that a trial is judged by: the best, the last or the mean of the last values of a metric."""

    name: str
    of: str = "best"
    count: int = 1
    mode: str = "max"
    function: Callable[[dict[str, list[tuple[int, float]]]], float] | None = None
    """One of the user's, called with name → (step, value) of everything that a trial has reported."""

    def curve(self, metrics: dict[str, Curve]) -> Curve | None:
        """The curve that is looked at: on held-out data if there is one; None if nothing of this name was reported."""
        return metrics.get(HELD_OUT + self.name) or metrics.get(self.name)

    def value(self, metrics: dict[str, Curve]) -> float | None:
        """The number of a trial so far; None if it has reported none, NaN if none is finite. Raises `UserError` if the user's function
        fails."""
        if self.function:
            return self._computed(self.function, metrics)
        curve = self.curve(metrics)
        if curve is None:
            return None
        if self.of == "best":
            best = curve.best(self.mode)
            return best[1] if best else math.nan
        last = list(curve.values)[-self.count :]
        return sum(last) / len(last)

    def _computed(self, function: Callable[[Any], Any], metrics: dict[str, Curve]) -> float:
        points = {name: list(zip(map(int, curve.at), curve.values, strict=True)) for name, curve in metrics.items()}
        try:
            return float(function(points))
        except Exception as error:
            raise UserError(f"tune.metric: {self.name} failed: {type(error).__name__}: {error}") from error

    def cost(self, value: float | None) -> float:
        """A value as a number of which less is better; what is not finite is the worst."""
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value


def measure(tune: Tune) -> Measure | None:
    """What trials are judged by; None if nothing is compared. Raises `ValueError`."""
    if not tune.metric:
        return None
    if ":" in tune.metric:
        return Measure(tune.metric.strip(), FUNCTION, 1, tune.mode or "max")
    found = MEASURE.fullmatch(tune.metric.strip())
    if found is None or (found[3] and found[1] != "mean"):
        raise ValueError(f"{tune.metric}: write a name, best(name), last(name) or mean(name, count)")
    name = found[2] or found[4]
    mode = tune.mode or ("min" if lower_is_better(name) else "max")
    return Measure(name, found[1] or "best", max(1, int(found[3] or 1)), mode)


def problems(job: Job) -> Iterator[Problem]:
    """What is wrong with the section `tune`, apart from what the values do to the rest of the recipe."""
    tune = job.tune
    if tune is None:
        return
    yield from _of_space(tune)
    yield from _of_metric(job, tune)
    if tune.early_stop not in EARLY_STOPS:
        text = f"there is no {tune.early_stop!r}. {nearest(tune.early_stop, list(EARLY_STOPS))}"
        yield Problem(("tune", "early_stop"), text)
    elif tune.early_stop != "none":
        yield from _of_rungs(job, tune)
    if tune.early_stop == PBT:
        yield from _of_population(tune)
    if tune.budget is not None and durations.seconds_of(tune.budget) is None:
        yield Problem(("tune", "budget"), f"{tune.budget} is no time: write it like 30m, 6h or 2d")
    if tune.samples is not None and samples_of(tune.samples) is None:
        yield Problem(("tune", "samples"), f"{tune.samples} is no number of samples: write it like 500k, 10M or 2G")
    if tune.keep is not None and not 0 < tune.keep < 1:
        yield Problem(("tune", "keep"), f"a share of the trials is above 0 and below 1, not {tune.keep:g}")


def _of_population(tune: Tune) -> Iterator[Problem]:
    for key in tune.over:
        if key in FIXED:
            yield Problem(
                ("tune", "over", key), "pbt changes values while a trial trains, and this one cannot change then"
            )
    for key in tune.perturb or ():
        if key not in tune.over:
            yield Problem(("tune", "perturb"), f"tune.over has no {key!r}. {nearest(key, list(tune.over))}")
    if tune.keep is not None and tune.keep < 1 / 2:
        yield Problem(
            ("tune", "keep"), f"with pbt at least half of the trials go on from their own state, not {tune.keep:g}"
        )
    if trials_of(tune) < LEAST_POPULATION:
        yield Problem(("tune", "trials"), "pbt compares trials: it takes 2 at least")


def _of_space(tune: Tune) -> Iterator[Problem]:
    for key, value in tune.over.items():
        place = ("tune", "over", key)
        try:
            found = domain(value)
        except ValueError as error:
            yield Problem(place, str(error))
            continue
        if not all(key.split(".")) or key.split(".")[0] in ("tune", "name"):
            yield Problem(place, "name a key of the recipe, as params.lr or train.global_batch")
        if tune.sampler == GRID and not found.grid():
            yield Problem(
                place, f"a grid has a list for each key or int(a, b, step=s), and {value} has no end of values"
            )


def _of_metric(job: Job, tune: Tune) -> Iterator[Problem]:
    try:
        judged = measure(tune)
    except ValueError as error:
        yield Problem(("tune", "metric"), str(error))
        return
    if judged is None and (tune.sampler not in (GRID, "random", "sobol") or tune.early_stop != "none"):
        text = "tune.metric is missing: which number of a trial is compared, as metric: accuracy"
        yield Problem(("tune",), text)
    if judged and judged.of == FUNCTION:
        if text := entrypoint.problem(judged.name, job.code_folders, ast.FunctionDef):
            yield Problem(("tune", "metric"), text)
        return
    names = task_class.metric_names(job.target, job.code_folders) if judged and job.kind == "task" else None
    if judged and names and judged.name not in (*names, "loss"):
        text = f"no trial reports a metric {judged.name!r}, but {', '.join(names)}. {nearest(judged.name, names)}"
        yield Problem(("tune", "metric"), text)


def _of_rungs(job: Job, tune: Tune) -> Iterator[Problem]:
    if job.kind == "script":
        yield Problem(
            ("tune", "early_stop"), "a script has no steps that dtrain could stop it at: leave early_stop out"
        )
    elif not tune.rungs and not job.train.steps:
        text = "with train.epochs the number of steps is not known here: name them, as rungs: [100, 300, 900]"
        yield Problem(("tune", "early_stop"), text)
    if list(tune.rungs) != sorted(set(tune.rungs)):
        yield Problem(("tune", "rungs"), "rungs are rising numbers of steps, as [100, 300, 900]")
