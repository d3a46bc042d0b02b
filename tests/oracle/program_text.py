"""A drawn program as a file that its author might have written, with the same training by hand beside it, and its recipe."""

from __future__ import annotations

from typing import Any

import keras_text
from grammar import OPTIMIZERS, SCHEDULES, STEPS, TENSORFLOW, Choices
from loop_text import by_hand, by_step, function, numbers_of, script
from program_parts import AVERAGE, DATA, HEAD, LOOKAHEAD, REGISTERED, ROWS, SCHEDULE_FREE, answer_of_loss, factor_of


def source(chosen: Choices) -> str:
    """Return the program."""
    if chosen["strategy"] in TENSORFLOW:
        return keras_text.source(chosen)
    parts = [(HEAD + ROWS).format(choices=chosen, size=chosen["size"])]
    if chosen["package"] != "none":
        parts.append("import pytorch_optimizer\n")
    if chosen["optimizer"] == "lookahead":
        parts.append(LOOKAHEAD)
    if chosen["optimizer"] == "schedule-free":
        parts.append(SCHEDULE_FREE)
    parts += ["", DATA[chosen["data"]], "", _model(chosen), "", _optimizer(chosen), ""]
    if schedule := SCHEDULES[chosen["schedule"]]:
        parts += [f"def make_schedule(optimizer):\n    return {schedule}\n", ""]
    if chosen["registered"] != "nothing":
        parts += [_registered(chosen["registered"]), ""]
    if chosen["average"] == "ema":
        parts += [AVERAGE, ""]
    parts += [
        _loss(chosen),
        "",
        {"task": _task, "train_step": _train_step, "function": function, "script": script}[chosen["form"]](chosen),
        "",
    ]
    start = ["", 'if __name__ == "__main__":', "    main()"] if chosen["form"] == "script" else []
    return "\n".join([*parts, by_hand(chosen), *start, ""])


def _registered(kind: str) -> str:
    gives, takes = REGISTERED[kind]
    generator = "\n        self.generator = torch.Generator().manual_seed(1)" if kind == "generator" else ""
    return (
        f"class Kept:\n    def __init__(self):\n        self.steps = 0{generator}\n\n    def state_dict(self):\n        return {gives}\n\n"
        f"    def load_state_dict(self, state):\n        {takes}\n"
    )


def _model(chosen: Choices) -> str:
    model, extra = chosen["model"], chosen["extra"]
    made = {
        "linear": "self.first = nn.Linear(6, 8)",
        "conv": "self.first = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten())",
        "embedding": "self.table = nn.Embedding(16, 8)\n        self.first = nn.Linear(6, 8)",
        "sparse": "self.table = nn.Embedding(16, 8, sparse=True)",
    }[model]
    first = {
        "embedding": "self.first(x) + self.table((x[:, 0].abs() * 10).long() % 16)",
        "sparse": "self.table((x[:, 0].abs() * 10).long() % 16)",
    }.get(model, "self.first(x)")
    init, forward = [made], [f"x = {first}"]
    if chosen["norm"] != "none":
        init.append(f"self.norm = {'nn.BatchNorm1d(8)' if chosen['norm'] == 'batch' else 'nn.LayerNorm(8)'}")
        forward.append("x = self.norm(x)")
    forward.append("x = torch.tanh(x)")
    if chosen["dropout"] == "yes":
        init.append("self.dropout = nn.Dropout(0.2)")
        forward.append("x = self.dropout(x)")
    adding = {
        "none": ([], []),
        "tied": (
            ["self.middle = nn.Linear(8, 8, bias=False)", "self.again = nn.Linear(8, 8)", "self.again.weight = self.middle.weight"],
            ["x = torch.tanh(self.again(self.middle(x)))"],
        ),
        "frozen": (["self.middle = nn.Linear(8, 8)", "self.middle.requires_grad_(False)"], ["x = self.middle(x)"]),
        "untrained": (["self.untouched = nn.Linear(8, 8)"], ["x = self.untouched(x)"]),
        "mean": (
            ["self.register_buffer('mean', torch.zeros(8))"],
            ["if self.training:", "    self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)", "x = x - self.mean"],
        ),
        "not_saved": (
            ["self.register_buffer('mean', torch.full((8,), 0.1), persistent=False)"], ["x = x - self.mean"],
        ),
        "counter": (
            ["self.register_buffer('passes', torch.zeros((), dtype=torch.long))"],
            ["if self.training:", "    self.passes += 1", "x = x / (1 + self.passes / 100)"],
        ),
        "extra_state": (["self.passes = 0"], ["if self.training:", "    self.passes += 1", "x = x / (1 + self.passes / 100)"]),
        "attribute": (
            ["self.scale = nn.Parameter(torch.ones(8, dtype=torch.float32))"], ["x = x * self.scale.double()"],
        ),
        "unused": (["self.never = nn.Linear(3, 3)"], []),
        "complex": (
            ["self.turn = nn.Parameter(torch.randn(8, dtype=torch.complex128))"], ["x = torch.view_as_real(x * self.turn).sum(-1)"],
        ),
    }  # fmt: skip
    init += adding[extra][0]
    forward += adding[extra][1]
    if model != "sparse":
        init.append("self.last = nn.Linear(8, 1)")
        forward.append("return self.last(x)")
    else:
        forward.append("return x.mean(1, keepdim=True)")
    init.append(
        "self.double()" if extra != "attribute" else "self.double()\n        self.scale.data = self.scale.data.float()"
    )
    if extra == "complex":
        init = [line for line in init if line != "self.double()"] + [
            "for one in (self.first, self.last):\n            one.double()"
        ]
        init += ["self.norm.double()"] if chosen["norm"] != "none" else []
        init += ["self.table.double()"] if model == "embedding" else []
    text = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        "
        + "\n        ".join(init) + "\n\n    def forward(self, x):\n        " + "\n        ".join(forward) + "\n"
    )  # fmt: skip
    if extra == "extra_state":
        text += (
            "\n    def get_extra_state(self):\n        return {'passes': self.passes}\n\n    def set_extra_state(self, state):\n"
            "        self.passes = state['passes']\n"
        )
    return text


def _optimizer(chosen: Choices) -> str:
    made = OPTIMIZERS[chosen["optimizer"]]
    if chosen["package"] != "none":
        made = f"pytorch_optimizer.load_optimizer({chosen['package']!r})({{}}, lr=0.01)"
    if (values := chosen["values"]) in ("tensor", "numpy"):
        rate = made.partition("lr=")[2].partition(",")[0].partition(")")[0]
        kind = f"torch.tensor({rate}, dtype=torch.float64)" if values == "tensor" else f"np.float64({rate})"
        made = (
            made.replace(f"lr={rate}", f"lr={kind}")
            .replace("foreach=True", "foreach=False")
            .replace("fused=True", "foreach=False")
        )
    parameters = "[one for name, one in model.named_parameters() if one.requires_grad and 'untouched' not in name]"
    if chosen["optimizer"] == "Muon":
        parameters = "[one for name, one in model.named_parameters() if one.ndim == 2 and one.requires_grad and 'untouched' not in name]"
    before = ""
    if chosen["groups"] in ("two", "named"):
        named = chosen["groups"] == "named"
        extra = ", 'name': 'biases', 'lr_scale': 0.5" if named else ""
        first = ", 'name': 'weights', 'lr_scale': 1.0" if named else ""
        before = f"    trained = {parameters}\n"
        groups = (
            f"[{{'params': [one for one in trained if one.ndim > 1]{first}}}, "
            f"{{'params': [one for one in trained if one.ndim < 2], 'lr': 0.003{extra}}}]"
        )
        parameters = groups
    elif chosen["groups"] == "added":
        before = f"    trained = {parameters}\n"
        parameters = "[one for one in trained if one.ndim > 1]"
    text = f"def make_optimizer(model):\n{before}    optimizer = {made.format(parameters)}\n"
    if values in ("array", "set"):
        value = "np.arange(3)" if values == "array" else "{'a', 'b'}"
        text += f"    optimizer.param_groups[0]['note'] = {value}\n"
    return text + "    return optimizer\n"


def _loss(chosen: Choices) -> str:
    value = {
        "sum": "((model(x) - y) ** 2).sum()",
        "masked": "(((model(x) - y) ** 2) * (y > 0)).sum() / (y > 0).sum().clamp(min=1)",
    }.get(chosen["loss"], "((model(x) - y) ** 2).mean()")
    return (
        "def loss_of(model, batch):\n    x, y = batch\n    x, y = torch.as_tensor(x), torch.as_tensor(y)\n"
        f"    return {value}\n"
    )


def _task(chosen: Choices) -> str:
    given = "make_optimizer(model)"
    lines = [f"self.optimizer_ = optimizer = {given}"]
    lines.append("return optimizer, make_schedule(optimizer)" if chosen["place"] == "scheduler" else "return optimizer")
    numbers = numbers_of(chosen, "")
    result = answer_of_loss(chosen, numbers, "(torch.as_tensor(batch[1]) > 0).sum()")
    return (
        "class Task:\n    def __init__(self, **params):\n        self.watch = Watch(**params)\n\n    def model(self):\n        return Net()\n\n"
        "    def optimizer(self, model):\n        " + "\n        ".join(lines) + "\n\n"
        "    def data(self, split):\n        return make_data() if split == 'train' else None\n\n"
        "    def loss(self, model, batch):\n        self.watch.forward(batch[0], self.optimizer_, training=model.training)\n"
        "        loss = loss_of(model, batch)\n        return " + result + "\n" + factor_of(chosen)
    )  # fmt: skip


def _train_step(chosen: Choices) -> str:
    lines = ["model, optimizer, batch = step.model, step.optimizer, step.batch", *by_step(chosen, "step.number")]
    watched = "self.watch.forward(batch[0], optimizer, training=model.training)"
    if chosen["optimizer"] == "LBFGS":
        lines += [watched, "", "def closure():", "    optimizer.zero_grad()", "    loss = loss_of(model, batch)", "    loss.backward()",
                  "    return loss", "", "loss = optimizer.step(closure)"]  # fmt: skip
    elif chosen["clip"] == "yes":
        lines += [watched, "loss = loss_of(model, batch)", "step.minimize(loss)"]
    else:
        lines += [
            watched,
            "optimizer.zero_grad()",
            "loss = loss_of(model, batch)",
            "(loss * step.weight).backward()",
            "optimizer.step()",
        ]
    numbers = numbers_of(chosen, "step.number")
    lines.append(
        f"return {{'loss': loss}} | ({numbers})" if numbers != "{}" or chosen["loss"] == "dict" else "return loss"
    )
    pair = "make_optimizer(model)"
    given = [f"return {pair}"]
    if chosen["place"] == "scheduler":
        given = [f"optimizer = {pair}", "return optimizer, make_schedule(optimizer)"]
    return (
        "class Task:\n    def __init__(self, **params):\n        self.watch = Watch(**params)\n\n    def model(self):\n        return Net()\n\n"
        "    def optimizer(self, model):\n        " + "\n        ".join(given) + "\n\n"
        "    def data(self, split):\n        return make_data() if split == 'train' else None\n\n"
        "    def train_step(self, step):\n        " + "\n        ".join(lines).replace("\n        \n", "\n\n") + "\n"
    )  # fmt: skip


def recipe(chosen: Choices, workers: int) -> dict[str, Any]:
    """Return the recipe of the program beside it."""
    common = {"name": "drawn", "resources": {"workers": workers, "check_nodes": False, "cpus_per_worker": 1},
        "recovery": {"backoff_seconds": 0, "hang_seconds": 60}}  # fmt: skip
    if chosen["form"] == "script":
        return common | {"script": "program.py"}
    form = {"function": "program.py:train"} if chosen["form"] == "function" else {"task": "program.py:Task"}
    train: dict[str, Any] = {
        "steps": STEPS,
        "global_batch": int(chosen["batch"]),
        "seed": 3,
        "log_every": int(chosen["log"]),
    }
    if chosen["clip"] == "yes" and chosen["form"] != "function":
        train["clip_norm"] = 0.5
    if chosen["passes"] == "halves" and chosen["form"] == "task":
        train["micro_batch"] = 3
    train["on_nonfinite"] = "stop"
    memory = {"memory": 1}.get(chosen["event"], 0)
    strategy: Any = chosen["strategy"]
    if (chosen["extra"] == "unused" and strategy == "ddp") or (chosen["groups"] == "added" and strategy == "ddp"):
        strategy = {"name": "ddp", "find_unused_parameters": chosen["extra"] == "unused"}
    return common | form | {
        "strategy": strategy, "train": train,
        "checkpoint": {"every_steps": int(chosen["every"]), "memory_every_steps": memory},
    }  # fmt: skip
