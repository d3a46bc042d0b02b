"""The trials of a study in the journal of Optuna, and the choice of the next one.

A trial is written as a whole, with all its values, in one line: whoever is killed leaves no half of one. What a sampler remembers lies in
the trials, and its seed follows from the study's and the trial's number, so that the journal alone says what comes next."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from dtrain.common import installation
from dtrain.common.errors import UsageError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.launch.tuning import GRID, Domain
from dtrain.study.population import TakeOver

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "sobol": "QMCSampler", "cma": "CmaEsSampler"}
ONE_SEED = ("QMCSampler",)
"""Samplers that are one sequence: its seed is the same for all trials."""
LEAST_TRIALS = 8
"""From which on the importance of keys is computed."""
NESTED = "json:"
"""Begins a choice that is a list or a mapping."""
TOOK_OVER = "took over at step "
"""Begins the attribute of a trial that says what it has taken over from another one."""
OF_STUDY = "dtrain:study"
"""Attribute of a trial that has what the sampler remembers of the whole study."""


@dataclass(frozen=True)
class Trial:
    """One trial, as the journal has it."""

    number: int
    state: str
    """running, done, failed or stopped early."""
    values: dict[str, Any]
    """Key of the recipe → value."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Step → value of the metric there."""
    value: float | None = None
    """At the end, or at the newest rung."""
    step: int = 0
    seconds: float = 0.0
    """Time that its run has taken so far, as of its newest rung or its end."""
    failure: str = ""
    """Why it failed, or who stopped it."""
    began: float = 0.0
    """Seconds since 1970."""
    took_over: tuple[TakeOver, ...] = ()
    """What it has taken over from other trials, in order; `values` are those of the last."""

    @property
    def goes_on(self) -> bool:
        """Whether it trains, or waits at a rung."""
        return self.state == "running"


STATES = {"RUNNING": "running", "COMPLETE": "done", "FAIL": "failed", "PRUNED": "stopped early"}


def optuna() -> Any:
    """The library; raises `UsageError` if it is not installed."""
    try:
        import optuna as library
        from optuna.storages import JournalStorage, journal  # noqa: F401
    except ImportError:
        raise UsageError(
            "values are chosen by Optuna, which is not installed", f"Install it: {installation.command('tune')}"
        ) from None
    library.logging.set_verbosity(library.logging.ERROR)
    return library


class _NoLock:
    """The study's own lock keeps other writers away; one of Optuna's would outlive a process that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal:
    """The journal of one study. Only the study's process writes to it."""

    def __init__(self, path: Path, name: str, mode: str, *, write: bool = False) -> None:
        library = optuna()
        if write and path.exists():
            cut_to_whole_lines(path)
        backend = library.storages.journal.JournalFileBackend(str(path), lock_obj=_NoLock())
        self._storage = library.storages.JournalStorage(backend)
        self._states = library.trial.TrialState
        self._mode = f"{mode}imize"
        if write:
            self._study = library.create_study(
                storage=self._storage, study_name=name, direction=self._mode, load_if_exists=True
            )
        else:
            self._study = library.load_study(storage=self._storage, study_name=name)

    def trials(self) -> list[Trial]:
        """All trials so far, by their numbers."""
        return [_trial(one) for one in self._study.get_trials(deepcopy=False)]

    def propose(self, space: Mapping[str, Domain], sampler: str, seed: int) -> Trial:
        """Choose the values of the next trial and write it to the journal. What the sampler is told depends on the trials alone."""
        library, known = optuna(), self._study.get_trials(deepcopy=False)
        rehearsal = library.create_study(direction=self._mode, sampler=_sampler(sampler, seed, len(known)))
        for key, value in known[-1].system_attrs.get(OF_STUDY, {}).items() if known else ():
            rehearsal._storage.set_study_system_attr(rehearsal._study_id, key, value)
        rehearsal.add_trials([self._as_told(one) for one in known])
        asked = rehearsal.ask({key: _distribution(domain) for key, domain in space.items()})
        whole = rehearsal.get_trials(deepcopy=False)[asked.number]
        remembered = whole.system_attrs | {OF_STUDY: rehearsal._storage.get_study_system_attrs(rehearsal._study_id)}
        return self._add(asked.params, asked.distributions, remembered)

    def add(self, values: Mapping[str, Any], space: Mapping[str, Domain]) -> Trial:
        """Write a trial with these values to the journal."""
        encoded = {key: _encoded(value) for key, value in values.items()}
        return self._add(encoded, {key: _distribution(domain) for key, domain in space.items()}, {})

    def _add(self, values: Mapping[str, Any], distributions: Mapping[str, Any], remembered: Any) -> Trial:
        template = optuna().trial.create_trial(
            state=self._states.RUNNING, params=dict(values), distributions=dict(distributions), system_attrs=remembered
        )
        self._study.add_trial(template)
        return self.trials()[-1]

    def _as_told(self, trial: Any) -> Any:
        """A trial as a sampler sees it: one that waits at a rung was pruned there."""
        if trial.state != self._states.RUNNING or not trial.intermediate_values:
            return trial
        return optuna().trial.create_trial(
            state=self._states.PRUNED,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs=trial.system_attrs,
            intermediate_values=trial.intermediate_values,
        )

    def report(self, number: int, step: int, value: float, seconds: float) -> None:
        """Write down the value of a trial at a rung."""
        self._note(number, step=step, seconds=seconds)
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def take_over(self, number: int, taken: TakeOver) -> None:
        """Write down that a trial goes on from the state of another one."""
        self._note(number, **{f"{TOOK_OVER}{taken.step}": {"trial": taken.trial, "values": taken.values}})

    def end(self, number: int, state: str, value: float | None = None, **facts: Any) -> None:
        """Write down the end of a trial: done, failed or stopped early."""
        self._note(number, **facts)
        name = next(name for name, word in STATES.items() if word == state)
        values = [value] if value is not None and state == "done" else None
        self._storage.set_trial_state_values(self._id(number), self._states[name], values)

    def importances(self) -> dict[str, float]:
        """Key → its share in how the metric varies at the first rung, or at the end if there are none, as Optuna computes it; none if
        there are too few trials."""
        library, found = optuna(), self._study.get_trials(deepcopy=False)
        compared = library.create_study(direction=self._mode)
        for one in found:
            values = list(dict(sorted(one.intermediate_values.items())).values()) or list(one.values or ())
            if values and math.isfinite(values[0]) and one.state != self._states.FAIL:
                compared.add_trial(
                    library.trial.create_trial(params=one.params, distributions=one.distributions, value=values[0])
                )
        if len(compared.trials) < LEAST_TRIALS:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = library.importance.PedAnovaImportanceEvaluator()
            shares: dict[str, float] = library.importance.get_param_importances(compared, evaluator=evaluator)
        return {key: share for key, share in shares.items() if math.isfinite(share)}

    def _note(self, number: int, **facts: Any) -> None:
        for key, value in facts.items():
            self._storage.set_trial_user_attr(self._id(number), key, value)

    def _id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number))


def _trial(found: Any) -> Trial:
    rungs = dict(sorted(found.intermediate_values.items()))
    value = found.value if found.state.name == "COMPLETE" else list(rungs.values())[-1] if rungs else None
    facts = {key: found.user_attrs[key] for key in ("step", "seconds", "failure") if key in found.user_attrs}
    values = {key: _decoded(one) for key, one in found.params.items()}
    began = found.datetime_start.timestamp() if found.datetime_start else 0.0
    taken = _taken_over(found.user_attrs)
    values = taken[-1].values if taken else values
    return Trial(found.number, STATES[found.state.name], values, rungs, value, began=began, took_over=taken, **facts)


def _taken_over(attributes: Mapping[str, Any]) -> tuple[TakeOver, ...]:
    steps = sorted(int(key.removeprefix(TOOK_OVER)) for key in attributes if key.startswith(TOOK_OVER))
    return tuple(TakeOver(step, **attributes[f"{TOOK_OVER}{step}"]) for step in steps)


def _sampler(name: str, seed: int, number: int) -> Any:
    samplers = optuna().samplers
    known = [one for one in dir(samplers) if one.endswith("Sampler") and not one.startswith("Base")]
    chosen = SAMPLERS.get(name, name)
    if chosen not in known:
        raise UsageError(f"tune.sampler: there is no {name!r}. {nearest(name, ['grid', *SAMPLERS, *known])}")
    own = seed % 2**32 if chosen in ONE_SEED else seed_of(seed, number)
    try:
        with warnings.catch_warnings():  # of what is experimental in Optuna
            warnings.simplefilter("ignore")
            return getattr(samplers, chosen)(seed=own)
    except TypeError as error:
        raise UsageError(f"tune.sampler: {name} needs arguments of its own: {error}", "Take tpe.") from None
    except ImportError as error:
        raise UsageError(f"tune.sampler: {name} needs a package: {error}", "Take tpe.") from None


def check_sampler(name: str) -> None:
    """Raise `UsageError` if there is no such sampler, or Optuna is not installed."""
    optuna()
    if name != GRID:
        _sampler(name, 0, 0)


def seed_of(seed: int, number: int) -> int:
    """The seed of the sampler for one trial."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


def _distribution(domain: Domain) -> Any:
    kinds = optuna().distributions
    if domain.kind == "choice":
        return kinds.CategoricalDistribution([_encoded(choice) for choice in domain.choices])
    if domain.kind == "int":
        return kinds.IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=domain.step)
    return kinds.FloatDistribution(domain.low, domain.high, log=domain.log)


def _encoded(choice: Any) -> Any:
    """A choice as Optuna stores it: a list is no value there."""
    return f"{NESTED}{json.dumps(choice)}" if isinstance(choice, list | dict) else choice


def _decoded(value: Any) -> Any:
    return json.loads(value[len(NESTED) :]) if isinstance(value, str) and value.startswith(NESTED) else value


def cut_to_whole_lines(path: Path) -> None:
    """Drop the half of a line that a kill, or a full disk, has left at the end."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def rank(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """The trials, the best first: what is done before what was stopped early, since later values are not those of the same step."""

    def place(one: Trial) -> tuple[bool, bool, float, int]:
        known = one.value is not None and math.isfinite(one.value) and one.state != "failed"
        cost = (one.value if mode == "min" else -one.value) if known and one.value is not None else math.inf
        return not known, one.state != "done", cost, one.number

    return sorted(trials, key=place)
