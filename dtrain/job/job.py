"""The job: what a recipe becomes, as frozen data that every later stage reads.

The dataclasses carry the constraints that `dtrain.launch.recipe` has pydantic check; nothing here imports pydantic,
so agents and workers read a job without paying for it. Durations are seconds, as the names say.
"""

from __future__ import annotations

import math
import os
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.sizes import memory_bytes
from dtrain.job.limits import (
    COUNT,
    DATA_WORKERS,
    EXIT_CODE,
    FACTOR,
    NOT_NEGATIVE,
    POSITIVE,
    SAMPLES,
    SECONDS,
    SEED,
    STEPS,
    THREADS,
)
from dtrain.job.tune import Tune

Device = Literal["cpu", "gpu", "tpu"]
FailureClass = Literal["bug", "transient", "out of memory", "crash", "device"]
Moment = Literal["started", "stalled", "recovered", "requeued", "finished", "stopped", "failed"]
"""Of a run, that somebody may want to be told of."""
MOMENTS: tuple[Moment, ...] = get_args(Moment)


@dataclass(frozen=True)
class PluginChoice:
    """A strategy, a cluster or a tracker by name, with the options that its own `Options` class types."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why this one was chosen, if the recipe left it open."""


@dataclass(frozen=True)
class ScriptModule:
    """A module that is run as `python -m` does."""

    module: str
    """`package.module`, or a package with a `__main__`."""


@dataclass(frozen=True)
class InitFrom:
    """What a run's model has for weights before the first step."""

    source: str
    """A run (id, prefix, `last`, folder, URL), a checkpoint's folder, or a file beside the recipe: safetensors, a state dict
    of torch.save, a .keras or .weights.h5 file, a folder of Hugging Face."""
    step: Annotated[int, STEPS] | None = None
    """Of a run, the checkpoint of this step; the newest when neither this nor `best` is given."""
    best: str | None = None
    """Of a run, the checkpoint that is the best by this metric of its evaluations."""
    strict: bool = True
    """False: names and shapes may differ; what fits is taken, and the run says what was left out."""


@dataclass(frozen=True)
class Resources:
    """What the run asks of the cluster."""

    workers: Annotated[int, COUNT] = 1
    """Replicas that train, one a device; how many processes they live in is the strategy's business."""
    nodes: Annotated[int, COUNT] = 1
    """Machines the workers are spread over evenly."""
    device: Device = "cpu"
    """What one replica trains on."""
    gpus: tuple[int | str, ...] = ()
    """GPUs of the local machine that the run may use, by their numbers in nvidia-smi or their UUIDs: [2, 3]. All that CUDA_VISIBLE_DEVICES
    leaves when not given. A run takes as many as it has workers, and waits for those that another run of yours has."""
    numa: Literal["auto"] | None = None
    """auto: each worker, and all that it starts, is bound to the CPUs next to its GPU; without GPUs, to whole cores of its own. Its log says
    to which."""
    cpus_per_worker: Annotated[int, THREADS] | None = None
    """Threads of one replica; the node's CPUs divided by its replicas when not given."""
    min_workers: Annotated[int, COUNT] | None = None
    """Go on with this many when nodes are lost and none replaces them; `workers` when not given."""
    device_memory: str | None = None
    """Memory of one device, as `80GB`, in which a rank's part of the model must fit: `dtrain plan` warns if it does not."""
    check_nodes: bool = True
    """Look at every node before its first step, beside the start: versions equal, clock, room on the disk and in /dev/shm, run folder
    writable, other nodes reachable."""


@dataclass(frozen=True)
class StopWhen:
    """When a run ends before its last step, because its evaluations get no better."""

    metric: str
    """Of the evaluation (`loss`)."""
    mode: Literal["min", "max"]
    """Whether less or more of it is better."""
    patience: Annotated[int, COUNT] = 3
    """Evaluations in a row that are no better than the best."""
    min_delta: Annotated[float, NOT_NEGATIVE] = 0.0
    """What an evaluation must be better by to count as better."""


NonFinite = Literal["stop", "skip", "rollback", "ignore"]


@dataclass(frozen=True)
class Spike:
    """When a loss or gradient norm counts as a spike, checked before the optimizer steps, and what is done then."""

    above: Annotated[float, FACTOR] = 10.0
    """Factor above the median of the last steps; for the loss, only if that median is positive."""
    window: Annotated[int, COUNT] = 64
    """Number of steps in the median; until there are this many, nothing counts as a spike."""
    then: Literal["warn", "stop", "skip", "rollback"] = "warn"
    """`warn` logs an event; the others are as in `train.on_nonfinite`."""


@dataclass(frozen=True)
class Train:
    """The numbers of the training loop, which are the same on every number of workers."""

    steps: Annotated[int, STEPS] | None = None
    """Optimizer steps of the whole run; give this or `epochs`."""
    epochs: Annotated[float, STEPS] | None = None
    """Passes over the training data, rounded up to whole steps."""
    global_batch: Annotated[int, SAMPLES] = 64
    """Samples of one optimizer step, over all workers."""
    shards: Annotated[int, COUNT] | None = None
    """Equal parts of the global batch, whose randomness (dropout) does not depend on the number of workers; a worker takes
    whole shards, computes each in a pass of its own and accumulates their gradients. When not given, a worker computes its
    whole part of the batch in one pass, which is faster."""
    exact: bool = False
    """The same weights to the last bit, whatever number of workers, strategy (ddp, fsdp, hsdp) and cluster the run has, or comes to
    have: gradients of the shards are summed in one fixed tree. Workers and shards are powers of two; `train.shards` is 8 when not
    given, or less if the global batch cannot be divided by it."""
    micro_batch: Annotated[int, SAMPLES] | None = None
    """Most samples of one pass, for models that need the memory; a worker's part of the batch takes several passes then."""
    accumulate: Annotated[int, COUNT] | None = None
    """Passes of each worker in one optimizer step, which divide its part of `global_batch`; their gradients are accumulated."""
    seed: Annotated[int, SEED] = 0
    """Of the initial weights, the sample order and the randomness in a step."""
    shuffle: bool = True
    """False: the samples in the order of the data set."""
    clip_norm: Annotated[float, POSITIVE] | None = None
    """Largest global L2 norm of the gradient; a larger one is scaled down to it."""
    matmul: Literal["highest", "high", "medium"] | None = None
    """Precision in which matrices of float32 are multiplied: `highest` is float32, `high` allows TF32, `medium` bf16 (in TensorFlow: TF32).
    When not given, as the framework has it: `highest` in PyTorch, `high` in TensorFlow."""
    until: Annotated[int, STEPS] | None = None
    """End the run after so many of its steps, with its state saved; the schedule is that of all of them."""
    evaluate_every: Annotated[int, STEPS] | None = None
    """Steps between evaluations on the held-out data; only at the end when not given."""
    evaluate_steps: Annotated[int, STEPS] | None = None
    """Most global batches of held-out data that one evaluation takes; all of them when not given."""
    sanity_check: bool = True
    """Before the first step: try `metrics` on one batch of held-out data, and `schedule`, whose errors would show late."""
    on_nonfinite: NonFinite = "stop"
    """When the loss or the gradient of a step is not finite on any rank. `stop` ends the run and says where it comes from. `skip` leaves the
    optimizer step out. `rollback` goes back to the last checkpoint and on without that batch. `ignore` trains on. A checkpoint whose weights
    are not finite is never kept; 10 steps in a row that are left out end the run."""
    spike: Spike | None = None
    """What is done at a spike of the loss or gradient norm (`{above: 10, then: skip}`). Off when not given, since it costs a collective in
    each step."""
    stop_when: StopWhen | None = None
    """End the run early when a metric of its evaluations gets no better (`{metric: loss, mode: min, patience: 3}`)."""
    log_every: Annotated[int, STEPS] = 10
    """Steps between two reports of loss and metrics."""


def shards_on(train: Train, workers: int) -> int:
    """Parts that a global batch is divided into on this number of workers: `train.shards`, or `train.accumulate` for each worker,
    or as many for each as `train.micro_batch` makes necessary."""
    if train.shards:
        return train.shards
    if train.accumulate:
        return workers * train.accumulate
    part = math.ceil(train.global_batch / workers)
    return workers * math.ceil(part / (train.micro_batch or part))


@dataclass(frozen=True)
class Data:
    """How samples are fetched for the training: ahead of it, by data workers, which are processes beside each worker."""

    workers: Annotated[int, DATA_WORKERS] | Literal["auto"] = "auto"
    """Data workers of each worker. `auto`: none for arrays in memory; otherwise more as long as the training waits for data
    and there are CPUs. Results do not depend on it. 0: samples are fetched by the worker itself."""
    prefetch: Annotated[int, COUNT] = 2
    """Batches that each data worker is ahead of the training."""
    memory: str = "2GB"
    """Most memory of the batches that wait for one worker's training, in MB or GB."""
    sharded: bool = False
    """The stream of each rank has samples of its own (a node splitter, `split_dataset_by_node`): each worker reads its own alone, and the run
    keeps its number of workers. Without it, each worker reads the whole stream and takes its part."""


DEFAULT_STEPS = 100
"""Between two checkpoints."""


@dataclass(frozen=True)
class KeepBest:
    """Checkpoints that stay because their evaluation was good."""

    metric: str
    """Of the evaluation (`accuracy`)."""
    mode: Literal["min", "max"]
    """Whether less or more of it is better."""
    count: Annotated[int, COUNT] = 1
    """How many."""


@dataclass(frozen=True)
class Checkpoint:
    """When state is saved and how much of it is kept."""

    every_steps: Annotated[int, STEPS] | None = None
    """Steps between two checkpoints; one more is made at the end. 100 when neither this nor `every_minutes` is given."""
    every_minutes: Annotated[float, POSITIVE] | None = None
    """Minutes between two checkpoints, looked at every `train.log_every` steps."""
    keep: Annotated[int, COUNT] = 3
    """The newest checkpoints, which stay on disk."""
    memory_every_steps: Annotated[int, NOT_NEGATIVE] | Literal["auto"] = "auto"
    """Steps between two in-memory checkpoints, which survive the workers but not the nodes that hold them. `auto`: the shortest interval
    that costs at most 1 % of the step time. 0: none are made."""
    memory_limit: str | None = None
    """Most memory of a node that in-memory checkpoints may use, in MB or GB; default: a quarter of its memory. They need three times the
    node's part of the state, and on several nodes twice that."""
    keep_every: Annotated[int, STEPS] | None = None
    """Checkpoints of steps that this divides stay, too."""
    keep_best: KeepBest | None = None
    """The best by their evaluations stay, too; a checkpoint is made at every evaluation then."""

    @property
    def steps(self) -> int | None:
        """Between two checkpoints; None if the time decides alone."""
        return self.every_steps or (None if self.every_minutes else DEFAULT_STEPS)


@dataclass(frozen=True)
class Logs:
    """The workers' output."""

    keep: str | None = "1GB"
    """Of each rank's log, in MB or GB: its beginning and its newest part. What lies between is removed, which the events and `dtrain logs`
    show. null: everything is kept."""

    @property
    def keep_bytes(self) -> int:
        """0: everything."""
        return memory_bytes(self.keep or "") or 0


@dataclass(frozen=True)
class Notify:
    """Who is told of a run, once of each moment; nobody who is slow or gone holds it up (`logs/notify.log` says so)."""

    command: str | None = None
    """A shell command in the recipe's folder: the text on its stdin, DTRAIN_NOTICE_EVENT, _RUN, _STEP … in its environment."""
    webhook: str | None = None
    """A URL that JSON is posted to, of which chat services show `text`; $NAME is taken from the environment."""
    mail: str | None = None
    """An address."""
    smtp: str = "localhost:25"
    """The server that takes the mail, without a password."""
    sender: str | None = None
    """Address that the mail is from; the one it goes to when not given."""
    when: tuple[Moment, ...] = MOMENTS
    """The moments: `failed` and `stopped` are ends; after `recovered` the run trains again; `stalled`: nothing moves."""


@dataclass(frozen=True)
class Storage:
    """Where a run is kept besides its folder, for machines that share no file system."""

    url: str | None = None
    """A folder of any fsspec file system, `s3://bucket/runs`: checkpoints are kept there, and a copy of events, logs and
    ledgers, below the run's id."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that file system (`endpoint_url`, `profile`, `anon` …); credentials belong in the environment."""


@dataclass(frozen=True)
class Recovery:
    """What is watched and how often a failure is answered with a new attempt."""

    restarts: Annotated[int, NOT_NEGATIVE] = 5
    """Crashes answered with a new attempt; a new checkpoint restores the whole budget."""
    backoff_seconds: Annotated[float, NOT_NEGATIVE] = 1.0
    """Wait before the second restart in a row without progress, doubled for each one after; the first does not wait."""
    hang_seconds: Annotated[float, SECONDS] = 600.0
    """No step, no output and no CPU time for this long is a hang. Of functions and scripts that use a GPU, CPU time is no sign of life."""
    heartbeat_seconds: Annotated[float, SECONDS] = 30.0
    """A node whose agent is silent for this long is lost."""
    grace_seconds: Annotated[float, NOT_NEGATIVE] = 30.0
    """Between asking the workers to save and leave, and ending them."""
    provision_seconds: Annotated[float, SECONDS] = 600.0
    """Longest wait for the cluster to give the nodes, and for a node to start its workers."""
    device_wait_seconds: Annotated[float, NOT_NEGATIVE] = 30.0
    """Longest wait before a restart until the GPUs have as much free memory as before the first start: what a killed process held is freed
    some time after its end."""
    classes: dict[str, FailureClass] = field(default_factory=dict)
    """Name of an exception → the class that it is: {DataError: transient, CudaAssert: bug}. `bug` and `out of memory` end the run,
    `transient` is tried once more, `crash` as often as `restarts` says."""
    hold_seconds: Annotated[float, NOT_NEGATIVE] = 0.0
    """A rank that an exception ends waits for so long for `dtrain debug` before it fails."""
    avoid_hours: Annotated[float, NOT_NEGATIVE] = 24.0
    """Hours for which a node is avoided after two different failures (lost, hang, crash, killed) began on it: by the next attempts and by
    later runs in the same folder, if there are other nodes; see `dtrain nodes`. 0: never."""
    replace_stragglers: bool = False
    """Replace the node of a straggler, a rank that the others wait for in every step, if there is another node."""
    retry_exit_codes: tuple[Annotated[int, EXIT_CODE], ...] = ()
    """Exit codes by which a script asks to be started again; other codes than 0 are errors of its own, which are not retried."""


@dataclass(frozen=True)
class Job:
    """One run, complete: what to run, with what, where, and how failures are answered."""

    name: str
    """Begins the run's id; letters, digits, dots, dashes and underscores."""
    task: str | None = None
    """`file.py:Class` (beside the recipe) or `package.module:Class`; dtrain owns the loop."""
    function: str | None = None
    """`file.py:function`, called with a context; the user owns the loop."""
    script: str | ScriptModule | None = None
    """A program, unchanged: a Python file beside the recipe, `{module: package.module}`, or a command."""
    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the task's class, or `context.params`."""
    args: tuple[str | int | float, ...] = ()
    """Arguments of the script."""
    pythonpath: tuple[str, ...] = ()
    """Folders that modules are imported from besides the recipe's, as seen from there: [src], [..]."""
    preload: tuple[str, ...] = ()
    """Modules to import once a node, before workers are forked, so that a restart need not import them again; not your
    own files, whose changes are to be seen."""
    init_from: InitFrom | str | None = None
    """Weights that the training begins with, instead of new ones: a run, or a file. A run that goes on from a checkpoint of its own
    does not look at it."""
    strategy: PluginChoice = PluginChoice("")
    """How the workers train together; when not given, what suits the task or script (`auto`)."""
    cluster: PluginChoice = PluginChoice("")
    """Where the workers run; the default cluster when not given."""
    resources: Resources = Resources()
    """Workers, nodes and devices."""
    train: Train = Train()
    """The training loop."""
    data: Data = Data()
    """Fetching of samples."""
    checkpoint: Checkpoint = Checkpoint()
    """Saving."""
    logs: Logs = Logs()
    """Output of the workers."""
    recovery: Recovery = Recovery()
    """Failures."""
    storage: Storage = field(default_factory=Storage)
    """Remote storage."""
    notify: Notify = field(default_factory=Notify)
    """Who is told of the run."""
    track: tuple[PluginChoice, ...] | None = None
    """Where curves are drawn, as `[tensorboard, {name: wandb, project: p}]`. When not given: in the default tracker, if what it needs is installed. []: nowhere."""
    tune: Tune | None = None
    """What `dtrain tune` tries; `dtrain run` does not look at it."""
    tags: dict[str, str] = field(default_factory=dict)
    """Words by which the run is found again (`dtrain ps --tag dataset=v2`): {dataset: v2}."""
    note: str = ""
    """What the run is for, in your words."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of every worker."""
    folder: str = ""
    """Where the recipe lies: user code is looked up there, and the workers run there. Set by dtrain."""
    filled: tuple[str, ...] = ()
    """Keys that the recipe left out and a profile or a file of defaults gave, with the place of each. Set by dtrain."""

    @property
    def code_folders(self) -> tuple[str, ...]:
        """Where the user's modules are looked for."""
        return (self.folder, *(os.path.normpath(Path(self.folder, part)) for part in self.pythonpath))

    @property
    def kind(self) -> Literal["task", "function", "script"]:
        """Which of the three things this job runs."""
        return "task" if self.task else "function" if self.function else "script"

    @property
    def target(self) -> str:
        """The name of what this job runs."""
        if isinstance(self.script, ScriptModule):
            return f"python -m {self.script.module}"
        return self.task or self.function or self.script or ""
