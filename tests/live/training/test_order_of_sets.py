"""A vocabulary that is made of a set has the same order in every process that trains with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import finished

PROGRAM = """
def train(context=None):
    words = "the quick brown fox jumps over a lazy dog that nobody has seen here before today".split()
    print("in order", list(set(words)), hash("text"), flush=True)


if __name__ == "__main__":
    train()
"""


@pytest.mark.parametrize(
    "form", ["script: program.py", "function: program.py:train\nstrategy: ddp\ntrain: {steps: 1, global_batch: 2}"]
)
def test_sets_of_texts_have_the_same_order_in_every_run(tmp_path: Path, form: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "recipe.yaml").write_text(f"name: sets\n{form}\nresources: {{workers: 2}}\n")
    recipe = str(tmp_path / "recipe.yaml")
    # Another environment, so that they are forked from different processes.
    runs = [finished(recipe, runs=tmp_path / "runs", NUMBER=str(number)) for number in range(2)]
    lines = {line for live in runs for rank in (0, 1) for line in live.output(rank).splitlines() if "in order" in line}
    assert len(lines) == 1
