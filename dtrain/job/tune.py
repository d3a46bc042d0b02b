"""The section `tune` of a recipe: the values that are tried, how they are chosen, and which trials are stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.limits import COUNT, POSITIVE, SEED, STEPS


@dataclass(frozen=True)
class Tune:
    """A study: many trials of one recipe, each a run with other values, of which the best is wanted."""

    over: dict[str, Any] = field(default_factory=dict)
    """Key of the recipe → what is tried for it: a list `[64, 128]`, `uniform(0, 0.5)`, `log(1e-5, 1e-1)`, `int(16, 256, step=16)` or
    `int(1, 1024, log)`."""
    metric: str = ""
    """What is compared: `accuracy` or `best(accuracy)`, `last(loss)`, `mean(loss, 3)` of the last 3 values. The value on held-out data
    counts if there is one. `file.py:function` of a file beside the recipe is called with name → [(step, value)] of all that a trial has
    reported, and returns a number of which more is better."""
    mode: Literal["min", "max"] | None = None
    """Whether less or more of it is better; when not given, its name says it (a loss or an error: less)."""
    trials: Annotated[int, COUNT] | None = None
    """Number of trials; when not given: 20, and with the sampler `grid` all."""
    budget: str | None = None
    """Time (`6h`) after which no trial is started or promoted any more, counted from the start of the study."""
    samples: str | int | None = None
    """Samples (`10M`) that all trials together have trained on, after which none is started or promoted any more."""
    device_hours: Annotated[float, POSITIVE] | None = None
    """Hours of all trials times the workers of each (GPU-hours), after which none is started or promoted any more."""
    sampler: str = "tpe"
    """What chooses the values: tpe, random, grid, sobol, cma, or the name of any sampler of Optuna (`NSGAIISampler`)."""
    early_stop: str = "none"
    """none, asha, hyperband, median or percentile: a trial stops at each rung, with its state saved, and goes on from there, to the same
    bits as if it had never stopped, once it is among the best. pbt: all go on, once all are at the rung, and the worst of them from the state
    of one of the best, with other values."""
    rungs: tuple[Annotated[int, STEPS], ...] = ()
    """Steps at which trials are compared; when not given: 1/27, 1/9 and 1/3 of `train.steps`, with pbt each eighth of them, at evaluations."""
    keep: float | None = None
    """Share of the trials that go on at a rung, with pbt from their own state; when not given: asha and hyperband 1/3, median 1/2,
    percentile 1/4, pbt 3/4."""
    perturb: tuple[str, ...] | None = None
    """Keys of `over` that pbt changes when a trial goes on from the state of another: a number to 0.8 or 1.2 of it, a choice to one beside
    it. When not given: all of them; leave out those that the shape of the model depends on."""
    at_once: Annotated[int, COUNT] | Literal["auto"] = "auto"
    """Trials that train at the same time. auto: as many as the machine has GPUs for or, if `resources.cpus_per_worker` is given, CPUs,
    otherwise one; 8 where a cluster has a queue, with `packing` as many as fit on its nodes."""
    packing: Annotated[int, COUNT] | None = None
    """Nodes of one allocation of the cluster (SLURM) that all trials and the study's process share; when not given, each trial is a job of
    its own, and the study's process stays where it was started."""
    sampler_seed: Annotated[int, SEED] = 0
    """Of the choice of values. With one trial at once, two studies of the same seed are equal trial by trial."""


def taken(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into those that are keys of the section and were given, and the others."""
    keys = Tune.__dataclass_fields__
    mine = {key: value for key, value in options.items() if key in keys and value is not None}
    return mine, {key: value for key, value in options.items() if key not in keys}
