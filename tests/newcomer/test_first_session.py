"""The first session of a newcomer, from an empty folder: what the documents say is typed, and works at the first try."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import documents
from live import DTRAIN, ROOT, dtrain, wait_for

BLOCK = re.compile(r"```(python|yaml)\n(.*?)```", re.DOTALL)
SCRIPT = """
import argparse, os
import torch
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
lr = parser.parse_args().lr
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
for step in range(5):
    loss = model(torch.ones(8, 4)).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} trained with {lr}")
"""


def of_the_readme(folder: Path) -> None:
    """The task and the recipe of the README, in the files that their first lines name."""
    for kind, text in BLOCK.findall((ROOT / "README.md").read_text())[:2]:
        name = text.splitlines()[0].removeprefix("# ").partition(":")[0]
        assert Path(name).suffix == {"python": ".py", "yaml": ".yaml"}[kind]
        (folder / name).write_text(text)


def test_the_first_hour(tmp_path: Path) -> None:
    """One session: each command is typed in the same folder, after the one before."""

    def typed(command: str, check: int = 0) -> str:
        done = dtrain(*command.split(), cwd=tmp_path, check=check)
        return done.stdout + done.stderr

    assert "dtrain status" in typed("show", check=2)
    assert "no runs in" in typed("ps")

    of_the_readme(tmp_path)
    assert "ddp on 2 workers" in typed("run recipe.yaml --dry-run")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("strategy: ddp", "strategy: dpp"))
    (mistake,) = re.findall(r"^recipe\.yaml:.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert mistake in typed("run recipe.yaml", check=2)
    recipe.write_text(recipe.read_text().replace("strategy: dpp", "strategy: ddp"))
    assert ": done in" in typed("run recipe.yaml --set train.steps=60")
    assert "step 60" in typed("status")
    assert "rank 0" in typed("logs -n 1")
    assert "goodput" in typed("report")
    assert "is finished" in typed("resume last", check=2)
    assert "trained" not in typed("resume last --set train.steps=80 --quiet")

    (tmp_path / "train.py").write_text(SCRIPT)
    assert "stands behind '--'" in typed("run train.py --lr 0.1", check=2)
    made = typed("run train.py --workers 2 -v -- --lr 0.1")
    assert "made a recipe: script train.py on 2 workers" in made
    assert "rank 1 of 2 trained with 0.1" in made
    written = typed("init --from train.py")
    assert "--lr (required)" in written
    assert "dtrain run train.yaml" in written

    task = typed("run blobs.py:Blobs --tag data=small")
    assert "made a recipe: task blobs.py:Blobs on 1 worker" in task
    assert "blobs" in typed("ps --tag data=small")
    assert "train.steps" in typed("explain steps")
    assert "Did you mean 'train'?" in typed("run recipe.yaml --set trian.steps=3", check=2)


def test_a_run_in_the_background_is_watched_stopped_and_resumed(tmp_path: Path) -> None:
    of_the_readme(tmp_path)
    run = dtrain("run", "-d", "-q", "recipe.yaml", "--set", "train.steps=1000000", cwd=tmp_path).stdout.strip()
    wait_for(lambda: json.loads(dtrain("status", "--json", cwd=tmp_path).stdout)["step"] > 0, "its first steps")
    assert "running" in dtrain("ps", cwd=tmp_path).stdout
    assert "dtrain stop" in dtrain("kill", run, check=2, cwd=tmp_path).stderr
    assert "saved at step" in dtrain("stop", cwd=tmp_path).stdout
    waited = subprocess.run([*DTRAIN, "wait"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert waited.returncode == 4, "stopped: it can be resumed"
    saved = json.loads(dtrain("status", "--json", cwd=tmp_path).stdout)["saved_step"]
    dtrain("resume", run, "--set", f"train.steps={saved + 10}", cwd=tmp_path)
    assert ": done in" in dtrain("status", cwd=tmp_path).stdout
    dtrain("rm", "recipe", "--yes", cwd=tmp_path)
    assert "no runs in" in dtrain("ps", cwd=tmp_path).stdout


def test_the_tutorial(tmp_path: Path) -> None:
    documents.files("docs/tutorial.md", tmp_path)
    documents.session(documents.commands("docs/tutorial.md"), tmp_path)
