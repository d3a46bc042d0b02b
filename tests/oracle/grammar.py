"""The grammar that training programs are drawn from: a choice for each of these dimensions, the plainest first."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

OPTIMIZERS = {
    "SGD": "torch.optim.SGD({}, lr=0.05)",
    "momentum": "torch.optim.SGD({}, lr=0.02, momentum=0.9, nesterov=True)",
    "Adam": "torch.optim.Adam({}, lr=0.01)",
    "amsgrad": "torch.optim.Adam({}, lr=0.01, amsgrad=True, foreach=True)",
    "AdamW": "torch.optim.AdamW({}, lr=0.01, weight_decay=0.1)",
    "fused": "torch.optim.AdamW({}, lr=0.01, fused=True)",
    "Adamax": "torch.optim.Adamax({}, lr=0.01)",
    "NAdam": "torch.optim.NAdam({}, lr=0.01)",
    "RAdam": "torch.optim.RAdam({}, lr=0.01)",
    "Adagrad": "torch.optim.Adagrad({}, lr=0.05)",
    "Adadelta": "torch.optim.Adadelta({}, lr=0.5)",
    "RMSprop": "torch.optim.RMSprop({}, lr=0.01, eps=1e-4, momentum=0.5)",
    "Rprop": "torch.optim.Rprop({}, lr=0.01)",
    "ASGD": "torch.optim.ASGD({}, lr=0.05, t0=3)",
    "Adafactor": "torch.optim.Adafactor({}, lr=0.05)",
    "LBFGS": "torch.optim.LBFGS({}, lr=0.1, max_iter=3, history_size=4)",
    "SparseAdam": "torch.optim.SparseAdam({}, lr=0.01)",
    "Muon": "torch.optim.Muon({}, lr=0.02)",
    "lookahead": "Lookahead({}, lr=0.05)",
    "schedule-free": "ScheduleFree({}, lr=0.05)",
}
"""How an optimizer is made of parameters; the last two are written out in the program."""
SCHEDULES = {
    "none": "",
    "step": "lr_scheduler.StepLR(optimizer, 3, 0.5)",
    "multistep": "lr_scheduler.MultiStepLR(optimizer, [2, 5, 9], 0.5)",
    "exponential": "lr_scheduler.ExponentialLR(optimizer, 0.9)",
    "linear": "lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)",
    "constant": "lr_scheduler.ConstantLR(optimizer, 0.2, total_iters=7)",
    "cosine": "lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)",
    "restarts": "lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=4)",
    "polynomial": "lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=2.0)",
    "lambda": "lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6))",
    "multiplicative": "lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.93)",
    "one-cycle": "lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=60, cycle_momentum=False)",
    "cyclic": "lr_scheduler.CyclicLR(optimizer, base_lr=0.01, max_lr=0.05, step_size_up=3, cycle_momentum=False)",
    "swa": "SWALR(optimizer, swa_lr=0.005, anneal_epochs=4)",
    "sequence": "lr_scheduler.SequentialLR(optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), "
    "lr_scheduler.ExponentialLR(optimizer, 0.9)], [4])",
    "chained": "lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), "
    "lr_scheduler.ExponentialLR(optimizer, 0.9)])",
    "plateau": "lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)",
}
NAMES = """
a2grad accsgd adabelief adabound adadelta adafactor adagc adai adalite adam adamax adamc adamg adamod adamp adams
adamw adamwsn adan adanorm adapnm adashift adasmooth adatam ademamix adopt aggmo aida alice amos ano apollo
apollodqn asgd avagrad bcos came conda dadaptadagrad dadaptadam dadaptadan dadaptlion dadaptsgd dash diffgrad
dualadam emofact emolynx emonavi exadam fira flashadamw focus fromage ftrl galore grams gravity grokfastadamw kate
kron lamb laprop lars lion lorarite madgrad magma mars msvag nadam nero novograd padam pid pnm prodigy qhadam qhm
racs radam ranger rmsprop rose sara scalableshampoo schedulefreeadamw schedulefreeradam schedulefreesgd scion
scionlight sgd sgdp sgdsai sgdw shampoo signsgd simplifiedademamix sm3 soap spam splus srmm stableadamw stablespam
swats tam tiger vsgd yogi
"""
PACKAGED = tuple(NAMES.split())
"""Optimizers of the package pytorch_optimizer, by its names."""
KERAS_OPTIMIZERS = {
    "none": "",
    "SGD": "SGD(0.05)",
    "momentum": "SGD(0.02, momentum=0.9, nesterov=True)",
    "Adam": "Adam(0.01)",
    "amsgrad": "Adam(0.01, amsgrad=True)",
    "AdamW": "AdamW(0.01, weight_decay=0.1)",
    "Adamax": "Adamax(0.01)",
    "Nadam": "Nadam(0.01)",
    "Adagrad": "Adagrad(0.05)",
    "Adadelta": "Adadelta(0.5)",
    "Adafactor": "Adafactor(0.05)",
    "RMSprop": "RMSprop(0.01, momentum=0.5, centered=True)",
    "Ftrl": "Ftrl(0.05)",
    "Lion": "Lion(0.003)",
    "Lamb": "Lamb(0.01)",
    "clipnorm": "Adam(0.01, clipnorm=0.3)",
    "clipvalue": "Adam(0.01, clipvalue=0.02)",
    "ema": "Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4)",
}
"""How an optimizer of Keras is made; its rate is the first argument."""
KERAS_SCHEDULES = {
    "exponential": "keras.optimizers.schedules.ExponentialDecay({}, 3, 0.7)",
    "step": "keras.optimizers.schedules.ExponentialDecay({}, 3, 0.5, staircase=True)",
    "multistep": "keras.optimizers.schedules.PiecewiseConstantDecay([2, 5, 9], [{0}, {0} / 2, {0} / 4, {0} / 8])",
    "cosine": "keras.optimizers.schedules.CosineDecay({0} / 4, 9, warmup_target={0}, warmup_steps=3)",
    "restarts": "keras.optimizers.schedules.CosineDecayRestarts({}, 4)",
    "polynomial": "keras.optimizers.schedules.PolynomialDecay({}, 20, power=2.0)",
    "linear": "keras.optimizers.schedules.InverseTimeDecay({}, 4, 0.5)",
}
TENSORFLOW = ("mirrored", "multi_worker_mirrored")
OWN_LOOPS = ("function", "script")
DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "form": ("task", "train_step", "function", "script"),
    "strategy": ("ddp", "fsdp", "horovod", *TENSORFLOW),
    "workers": ("2", "1", "3"),
    "model": ("linear", "conv", "embedding", "sparse"),
    "norm": ("none", "batch", "layer"),
    "dropout": ("no", "yes"),
    "extra": ("none", "tied", "frozen", "untrained", "mean", "counter", "extra_state", "unused", "complex", "not_saved", "attribute", "regularized"),
    "optimizer": tuple(OPTIMIZERS),
    "keras": tuple(KERAS_OPTIMIZERS),
    "package": ("none", *PACKAGED),
    "groups": ("one", "two", "named", "added"),
    "values": ("plain", "tensor", "numpy", "array", "set"),
    "schedule": tuple(SCHEDULES),
    "place": ("none", "scheduler", "factor", "hand", "decay"),
    "passes": ("one", "halves", "across"),
    "clip": ("no", "yes"),
    "average": ("no", "ema", "swa"),
    "registered": ("nothing", "counter", "numpy", "set", "generator"),
    "loss": ("mean", "sum", "dict", "masked"),
    "metrics": ("none", "every", "odd", "missing", "nan"),
    "data": ("arrays", "map", "stream", "stateful", "loader", "noise"),
    "size": ("32", "37", "50"),
    "batch": ("12", "8", "7"),
    "log": ("1", "3"),
    "event": ("disk", "memory", "stop", "shrink", "grow"),
    "at": ("7", "5", "9", "4", "11"),
    "every": ("3", "2", "5", "4"),
}  # fmt: skip
STEPS = 13
WEIGHTS: Mapping[str, Mapping[str, int]] = {
    "norm": {"none": 3}, "dropout": {"no": 3}, "extra": {"none": 6}, "groups": {"one": 4}, "values": {"plain": 6},
    "place": {"none": 2, "scheduler": 6}, "passes": {"one": 3}, "clip": {"no": 2}, "average": {"no": 2},
    "registered": {"nothing": 4}, "metrics": {"none": 3}, "data": {"arrays": 3}, "workers": {"2": 6},
    "form": {"task": 6, "train_step": 6, "function": 6}, "strategy": {"ddp": 8, "fsdp": 2, "horovod": 2}, "keras": {"none": 3},
    "package": {"none": 3 * len(PACKAGED)},
    "event": {"disk": 3, "memory": 2},
}  # fmt: skip
"""How often a choice is drawn, if not once in its dimension."""


@dataclass(frozen=True)
class Choices:
    """One choice for each dimension; those that mean nothing beside others are the plainest."""

    of: Mapping[str, str]

    def __getitem__(self, dimension: str) -> str:
        return self.of[dimension]

    def __str__(self) -> str:
        """Those that are not the plainest."""
        return " ".join(f"{name}={value}" for name, value in self.of.items() if value != DIMENSIONS[name][0]) or "plain"

    def simpler(self) -> Iterator[Choices]:
        """Yield programs with one choice made plainer."""
        for name, value in self.of.items():
            for plainer in DIMENSIONS[name][: DIMENSIONS[name].index(value)]:
                made = fitting(dict(self.of) | {name: plainer})
                if made != self:
                    yield made


def drawn(source: random.Random, fixed: Mapping[str, str] = {}) -> Choices:
    """Draw a program."""
    found = {}
    for name, values in DIMENSIONS.items():
        often = WEIGHTS.get(name, {})
        (found[name],) = source.choices(values, [often.get(value, 1) for value in values])
    return fitting(found | dict(fixed))


def parsed(text: str) -> Choices:
    """The opposite of `str`."""
    given = dict(part.split("=", 1) for part in text.split() if part != "plain")
    return fitting({name: given.get(name, values[0]) for name, values in DIMENSIONS.items()})


def fitting(found: dict[str, str]) -> Choices:
    """Make plain what has no meaning, or cannot be written, beside the other choices."""
    plain = {name: values[0] for name, values in DIMENSIONS.items()}

    def drop(*names: str) -> None:
        for name in names:
            found[name] = plain[name]

    if found["strategy"] in TENSORFLOW:
        return _fitting_keras(found)
    drop("keras")
    if found["form"] == "script":
        drop("strategy", "package", "loss", "metrics", "data", "log")
        found["event"] = "disk"  # its checkpoints are its own, and so is when it ends
        # Torch's own loading gives NAdam's state another type, and takes no group that was added.
        if found["groups"] == "added" or found["optimizer"] in ("schedule-free", "LBFGS", "NAdam"):
            drop("groups", "optimizer")
    if found["package"] != "none":
        drop("optimizer", "values")
    if found["extra"] == "regularized":
        drop("extra")
    if found["form"] not in OWN_LOOPS:
        drop("average", "registered")
        if found["passes"] == "across":
            drop("passes")
    if found["form"] == "task" and found["place"] in ("hand", "decay"):
        drop("place")
    if found["form"] != "task" and found["place"] == "factor":
        drop("place")
    if found["form"] == "task" and found["groups"] == "added":
        drop("groups")
    if found["passes"] == "halves" and (found["form"] == "train_step" or found["event"] in ("shrink", "grow")):
        drop("passes")  # at another size a step has another number of passes
    if found["loss"] == "masked" and (found["form"] != "task" or found["optimizer"] == "LBFGS"):
        drop("loss")
    if found["place"] != "scheduler":
        drop("schedule")
    elif found["schedule"] == "none":
        found["schedule"] = "linear"
    if found["schedule"] == "plateau" and found["form"] not in OWN_LOOPS:
        found["schedule"] = "step"
    if found["optimizer"] == "SparseAdam":
        found["model"] = "sparse"
        drop("norm", "extra", "groups", "clip", "passes")
        if found["registered"] == "generator":
            drop("registered")
    elif found["model"] == "sparse":
        found["model"] = "embedding"
    if (found["form"] in OWN_LOOPS and found["batch"] == "7") or (found["workers"] == "3" and found["batch"] == "8"):
        drop("batch")
    if found["optimizer"] == "LBFGS":
        drop("groups", "passes", "clip", "dropout")
        if found["extra"] == "complex":
            drop("extra")
    if found["optimizer"] == "Muon":
        found["model"], found["groups"] = "linear", "one"
        drop("norm", "extra")
    if (
        found["optimizer"] in ("Adafactor", "Rprop", "ASGD", "Muon", "lookahead", "schedule-free")
        and found["values"] == "tensor"
    ):
        drop("values")
    if found["extra"] == "complex" and found["optimizer"] in (
        "Adafactor",
        "fused",
        "Muon",
        "lookahead",
        "schedule-free",
    ):
        drop("extra")
    if found["norm"] == "batch" and found["batch"] == "7" and found["workers"] == "3":
        drop("batch")  # four workers would have a part of one sample, of which there is no variance
    if found["form"] == "function" and found["batch"] == "8" and found["workers"] == "2" and found["event"] == "grow":
        drop("batch")  # three workers cannot divide it
    if found["strategy"] == "fsdp":  # torch has nothing sharded for these, and says so in the first step
        if found["optimizer"] in ("Adafactor", "Muon", "Rprop", "SparseAdam"):
            drop("optimizer", "model")
        if found["extra"] in ("complex", "attribute"):
            drop("extra")
        if found["registered"] == "generator":
            drop("registered")
        if found["average"] == "swa":  # it copies the model
            found["average"] = "ema"
    if found["strategy"] == "ddp" and found["extra"] == "unused" and found["registered"] == "generator":
        drop("registered")  # DDP marks parameters as unused that are used outside of the model
    if found["strategy"] == "horovod":
        if found["extra"] == "complex":
            drop("extra")
        if found["groups"] == "added":
            drop("groups")
    if found["event"] == "shrink" and found["workers"] == "1":
        found["event"] = "grow"
    return Choices({name: found[name] for name in DIMENSIONS})


def _fitting_keras(found: dict[str, str]) -> Choices:
    """Make plain what has no meaning in a task of Keras, or cannot be written there: its graph gives the same names in every step."""
    plain = {name: values[0] for name, values in DIMENSIONS.items()}
    can: Mapping[str, tuple[str, ...]] = {
        "form": ("task",), "model": ("linear", "conv"), "extra": ("none", "tied", "frozen", "counter", "regularized"),
        "place": ("none", "scheduler", "factor"), "metrics": ("none", "every", "nan"), "data": ("arrays", "map", "stream"),
        "batch": ("12", "8"), "workers": ("1", "2", "3"),
        **dict.fromkeys(("optimizer", "package", "groups", "values", "passes", "average", "registered"), ()),
    }  # fmt: skip
    for name, values in can.items():
        if found[name] not in values:
            found[name] = plain[name]
    found["keras"] = "SGD" if found["keras"] == "none" else found["keras"]
    if found["place"] != "scheduler":
        found["schedule"] = plain["schedule"]
    elif found["schedule"] not in KERAS_SCHEDULES:
        found["schedule"] = "exponential"
    if found["batch"] == "8" and (found["workers"] == "3" or found["event"] == "grow"):
        found["batch"] = "12"
    if found["event"] == "shrink" and found["workers"] == "1":
        found["event"] = "grow"
    return Choices({name: found[name] for name in DIMENSIONS})
