"""Programs that nobody thought of: by hand, under dtrain, and through a kill, a stop or another size they are the same training."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from faults import FAULTS
from grammar import TENSORFLOW, drawn, parsed
from oracles import Refused, differences
from trial import Trial

SEED = 25
PROGRAMS = 40
KNOWN_REFUSALS = (r"whose step\(closure\) computes the loss several times",)
"""What no drawn program may be refused for but this."""
FINDING = {
    "rate-not-restored": "form=function place=scheduler schedule=linear",
    "momentum-skipped": "optimizer=momentum",
    "one-buffer-skipped": "norm=batch",
    "sample-skipped": "plain",
    "sample-twice": "plain",
    "dropout-by-attempt": "dropout=yes",
    "scheduler-not-restored": "place=scheduler schedule=step",
    "registered-not-restored": "form=function average=ema",
    "buffers-not-shared": "extra=mean event=stop",
    "loss-unweighted": "loss=masked",
    "parts-unweighted": "batch=7",
    "schedule-of-the-step-before": "place=factor",
    "gradients-not-kept": "form=function passes=across at=5",
    "metrics-by-position": "metrics=missing",
    "saved-in-training-mode": "optimizer=schedule-free",
    "clipped-twice-as-far": "clip=yes",
}  # fmt: skip
"""Fault → a program by which it is found; the campaign looks for it among drawn ones."""
FOUND = {
    "gradients of parameters that no optimizer trains were in the norm": "extra=untrained clip=yes event=stop",
    "and were lost with a function's state": "form=function optimizer=Muon clip=yes passes=across",
    "those of steps that are done, too": "form=function extra=untrained clip=yes",
    "metrics of one rank alone weighed what its samples do": "metrics=odd batch=7",
    "what was kept of added groups depended on when": "form=train_step groups=added schedule=step place=scheduler event=stop at=5",
    "buffers of functions parted between two checkpoints": "form=function extra=mean event=stop",
    "LBFGS lost the type of its history": "form=train_step extra=attribute optimizer=LBFGS at=9",
    "Horovod decayed weights that nothing uses": "strategy=horovod extra=unused optimizer=AdamW event=stop",
    "matrices that an optimizer has transposed were restored as copies": "package=soap",
    "dicts with numbers for keys came back with texts": "package=aggmo",
    "under fsdp, gradients of a model in float64 were summed in float32": "strategy=fsdp package=kate",
    "under fsdp, whole tensors of an optimizer came back sharded": "strategy=fsdp package=qhadam event=stop at=4 every=2",
    "torch's loading gave added groups a setting more": "form=function package=novograd groups=added at=4 every=2",
    "what an optimizer drew was each rank's own": "package=kron event=stop",
    "numbers between two reports were lost": "metrics=odd log=3 at=7 every=2 event=memory",
    "and came back in the order of the alphabet": "metrics=missing size=37 batch=8 log=3 event=stop at=5",
    "several replicas of Keras could not write averages over weights": "strategy=mirrored keras=ema",
    "under Horovod, a function clipped its own rank's gradients": "form=function strategy=horovod workers=3 passes=halves clip=yes",
}
"""What the campaign found → a program that shows it."""
MARKS = {"horovod": "horovod", "mirrored": "tensorflow"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_a_drawn_program_is_the_same_training_everywhere(number: int, tmp_path: Path) -> None:
    chosen = drawn(
        random.Random(f"{SEED}-{number}"), {"strategy": ("ddp", "ddp", "fsdp")[number % 3], "package": "none"}
    )
    try:
        found = differences(Trial(chosen, tmp_path))
    except Refused as error:
        assert any(re.search(known, str(error)) for known in KNOWN_REFUSALS), f"{chosen} is refused: {error}"
        return
    assert not found, f"python tests/campaign/programs.py --program '{chosen}'\n" + "\n".join(found)


@pytest.mark.tensorflow
@pytest.mark.parametrize("number", range(6))
def test_a_drawn_program_of_keras_is_the_same_training_everywhere(number: int, tmp_path: Path) -> None:
    chosen = drawn(random.Random(f"{SEED}-{number}"), {"strategy": TENSORFLOW[number % 2]})
    assert not differences(Trial(chosen, tmp_path)), f"python tests/campaign/programs.py --program '{chosen}'"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(text, marks=[getattr(pytest.mark, mark) for name, mark in MARKS.items() if name in text])
        for text in FOUND.values()
    ],
    ids=list(FOUND),
)
def test_what_was_found_once_is_not_found_again(program: str, tmp_path: Path) -> None:
    assert not differences(Trial(parsed(program), tmp_path))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_dtrain_is_found(name: str, tmp_path: Path) -> None:
    assert differences(Trial(parsed(FINDING[name]), tmp_path, FAULTS[name])), f"nothing is found with the fault {name}"
