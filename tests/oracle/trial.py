"""Runs of a drawn program: by hand, undisturbed, and with its event."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from grammar import STEPS, TENSORFLOW, Choices
from program_text import recipe, source

import dtrain
from dtrain.checkpoint.names import folder_of

HERE = Path(__file__).parent


@dataclass
class Seen:
    """What can be known of a run after its end."""

    run: dtrain.Run
    code: int
    """Its exit code, or that of the first part that did not end well."""
    text: str = ""
    keras: bool = False
    script: Path | None = None
    """Where a script wrote down what became of it."""
    passes: dict[int, list[list[dict[str, Any]]]] = field(default_factory=dict)
    """Step → for each rank what its passes saw, when the step was done for the last time."""

    @property
    def refusal(self) -> str:
        """The sentence by which dtrain refused the program; "" for an error of the program's own."""
        found = [event for event in self.run.events() if event["event"] == "failure_occurred"]
        return str(found[0]["message"]) if found and not found[0]["traceback"] else ""

    @property
    def last(self) -> Path:
        """The folder of the last checkpoint."""
        return folder_of(self.run.path / "checkpoints", self.run.checkpoints()[-1])

    @property
    def history(self) -> dict[int, dict[str, float]]:
        """Step → the reported values."""
        return {event["step"]: event["values"] for event in self.run.events() if event["event"] == "metrics"}

    @property
    def rates(self) -> dict[int, list[float]]:
        """Step → the learning rates that rank 0's first pass saw or, of a step in a graph, that were reported."""
        if self.keras:
            reported = (event for event in self.run.events() if event["event"] == "metrics")
            return {event["step"] - 1: [event["optimizer"]["learning_rate"]] for event in reported}
        return {step: ranks[0][0]["rates"] for step, ranks in sorted(self.passes.items()) if ranks and ranks[0]}

    @property
    def weights(self) -> dict[Any, Any]:
        """The weights at the end, by their names or, of a model of Keras, by their numbers."""
        if self.script is not None:
            return dict(self.own_state["plain"])
        found = dtrain.load(self.run.path)
        return dict(enumerate(found.values())) if self.keras else found

    @property
    def begins(self) -> dict[int, int]:
        """Attempt → the step that it began with, of those that trained."""
        if self.script is not None:
            return {
                int(path.name.split("-")[1]): int(path.read_text()) for path in sorted(self.script.glob("begins-*"))
            }
        found, attempt = dict[int, int](), 0
        for event in self.run.events():
            if event["event"] == "attempt_started":
                attempt = event["attempt"]
            elif event["event"] == "training_started":
                found[attempt] = event["step"]
        return found

    @property
    def own_state(self) -> dict[str, Any]:
        """What a script has saved at its end."""
        assert self.script is not None
        return dict(torch.load(self.script / "state.pt", weights_only=False))

    @property
    def attempts(self) -> int:
        """How often training began."""
        return sum(event["event"] == "attempt_started" for event in self.run.events())


class Trial:
    """One program in a folder of its own."""

    def __init__(self, chosen: Choices, folder: Path, fault: str = "") -> None:
        self.chosen = chosen
        self.folder = folder
        self.workers = int(chosen["workers"])
        self.draws = False
        """Whether something drew from torch's generator in a step by hand."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program.py").write_text(source(chosen))
        if fault:
            (folder / "fault.py").write_text(fault)
            (folder / "program.py").write_text(source(chosen).replace("from watch", "import fault\nfrom watch"))
        (folder / "watch.py").write_text((HERE / "watch.py").read_text())
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(chosen, self.workers), sort_keys=False))

    def module(self) -> dict[str, Any]:
        """What the program's file defines, in this process."""
        names: dict[str, Any] = {"__name__": "drawn_program"}
        exec(compile(source(self.chosen), str(self.folder / "program.py"), "exec"), names)
        return names

    def by_hand(self, samples: Mapping[int, list[int]]) -> tuple[list[float], list[list[float]], Mapping[Any, Any]]:
        """Losses, rates and last weights of a loop without dtrain over these samples of each step."""
        names = self.module()
        rows = [samples[step] for step in sorted(samples)]
        batches = [(names["X"][row], names["Y"][row]) for row in rows]
        losses, rates, model, drawn = [], [], None, None
        for loss, rate, made in names["by_hand"](batches):
            model, now = made, torch.get_rng_state()
            self.draws |= drawn is not None and not torch.equal(drawn, now)
            drawn = now
            if made is None:
                losses.append(loss)
                rates.append(rate)
        assert model is not None
        if self.chosen["strategy"] in TENSORFLOW:
            return losses, rates, {number: one.numpy() for number, one in enumerate(model.weights)}
        return losses, rates, model.state_dict()

    def is_unsteady(self, samples: Mapping[int, list[int]]) -> bool:
        """Whether the optimizer draws random numbers, or makes large differences of those by rounding: by hand, the same samples in another
        order within each step give other weights."""
        if self.chosen["package"] == "none":
            return False
        self.draws = False
        _, _, weights = self.by_hand(samples)
        _, _, others = self.by_hand({step: ids[::-1] for step, ids in samples.items()})
        return self.draws or not all(
            np.allclose(one, others[name], rtol=1e-7, atol=1e-9)
            for name, one in weights.items()
            if hasattr(one, "shape")
        )

    def undisturbed(self) -> Seen:
        """Train without an event."""
        return self._seen("undisturbed", ({}, {}))

    def disturbed(self) -> Seen:
        """Train with the program's event."""
        event, at = self.chosen["event"], int(self.chosen["at"])
        if event in ("disk", "memory"):
            every = int(self.chosen["every"])
            saved = at // every * every if event == "disk" and self.chosen["form"] != "script" else 0
            return self._seen(
                "disturbed", ({"kill": [min(1, self.workers - 1), at * self.passes_a_step + 1, saved]}, {})
            )
        size = {"stop": self.workers, "shrink": self.workers - 1, "grow": self.workers + 1}[event]
        return self._seen(
            "disturbed", ({}, {"train.until": at}), ({}, {"train.until": None, "resources.workers": size})
        )

    @property
    def passes_a_step(self) -> int:
        """How often `watch.forward` is called in a step."""
        if self.chosen["form"] != "task" or self.chosen["passes"] != "halves":
            return 1
        part = math.ceil(int(self.chosen["batch"]) / self.workers)
        return math.ceil(part / 3)

    def _seen(self, name: str, *parts: tuple[dict[str, Any], dict[str, Any]]) -> Seen:
        watched = self.folder / name
        watched.mkdir()
        run, code, text, keras = None, 0, "", self.chosen["strategy"] in TENSORFLOW
        for params, settings in parts:
            asked = {"folder": str(watched)} | params
            given = {f"params.{key}": value for key, value in asked.items()} | settings
            if script := self.chosen["form"] == "script":
                given = {"env.WATCH": json.dumps(asked)}
            try:
                if run is None:
                    run = dtrain.run(
                        str(self.folder / "recipe.yaml"), runs=self.folder / "runs", show=False, settings=given
                    )
                else:
                    run = dtrain.resume(run, show=False, settings=settings)
            except dtrain.runs.RunFailed as error:
                return Seen(error.run, int(error.exit_code), f"{error}\n{_failures(error.run)}", keras)
        assert run is not None
        seen = Seen(run, code, text, keras, watched if script else None)
        seen.passes = dict(self._passes(seen, watched))
        return seen

    def _passes(self, seen: Seen, watched: Path) -> Iterator[tuple[int, list[list[dict[str, Any]]]]]:
        """Put what each process wrote down into the order of steps."""
        found: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
        for attempt, begin in sorted(seen.begins.items()):
            for path in sorted(watched.glob(f"{attempt}-*.jsonl")):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                rank = int(path.stem.split("-")[1])
                each = self.passes_a_step
                for number in range(len(lines) // each):
                    found[begin + number][rank] = lines[number * each : (number + 1) * each]
            # a later attempt with fewer workers leaves no rank of an earlier one behind
            ranks = {int(path.stem.split("-")[1]) for path in watched.glob(f"{attempt}-*.jsonl")}
            for step in [one for one in found if one >= begin]:
                found[step] = {rank: seen for rank, seen in found[step].items() if rank in ranks}
        for step in range(STEPS):
            yield step, [found[step][rank] for rank in sorted(found.get(step, {}))]


def _failures(run: dtrain.Run) -> str:
    told = [str(event) for event in run.events() if "fail" in event["event"]]
    return "\n".join(told)[-3000:]


def one_line(text: str) -> str:
    """A message without what changes from run to run."""
    return re.sub(r"\s+", " ", text)[:400]
