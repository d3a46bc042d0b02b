"""The weights of runs in plain Python, in files for others, and as the beginning of other runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import PROGRAMS, RECIPES, Live, dtrain, finished, start, stopped, wait_for

import dtrain as library
from dtrain.common.errors import CheckpointError, UsageError, UserError

NOTEBOOK = """
import sys
import dtrain
assert not {{"torch", "tensorflow", "numpy", "pydantic", "typer"}} & set(sys.modules)
sys.path.insert(0, {recipes!r})
from {module} import Digits
digits = Digits()
model = dtrain.load_weights(digits.model(), {run!r}, best="accuracy")
images, labels = digits.data("eval")
{scores}
print("accuracy", (scores.argmax(1) == labels).mean())
"""
SCORES = {
    "torch": "import torch\nscores = model.eval()(torch.from_numpy(images)).detach().numpy()",
    "tensorflow": "scores = model.predict(images, verbose=0)",
}
READ_KERAS = """
import sys
import keras, numpy as np
sys.path.insert(0, {programs!r})
from digits_tensorflow import Digits
one, other = keras.saving.load_model("m.keras"), Digits().model()
other.load_weights("m.weights.h5")
np.savez("read.npz", **{{f"{{n:05d}}": w for n, w in enumerate(one.get_weights())}})
assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))
"""
TORCH = str(PROGRAMS / "contract_torch.yaml")
TENSORFLOW = str(PROGRAMS / "contract_tensorflow.yaml")
FROZEN = ("--set", "task=frozen.py:Mlp", "--set", "train.steps=1")
FROZEN_TF = ("--set", "task=frozen_tf.py:Mlp", "--set", "train.steps=1")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Live]:
    """A short run of each framework's contract."""
    runs = tmp_path_factory.mktemp("sources")
    short = ("--set", "train.steps=4", "--set", "checkpoint.every_steps=2")
    return {
        "torch": finished(TORCH, *short, runs=runs / "torch"),
        "tensorflow": finished(TENSORFLOW, *short, runs=runs / "tensorflow"),
    }


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one)


def outside(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_notebook_has_the_best_weights_in_one_line(
    framework: str, digits_of_torch: Live, digits_of_tensorflow: Live, tmp_path: Path
) -> None:
    live = digits_of_torch if framework == "torch" else digits_of_tensorflow
    program = NOTEBOOK.format(
        recipes=str(RECIPES), module=f"digits_{framework}", run=str(live.run.path), scores=SCORES[framework]
    )
    found = float(outside(program, tmp_path).split("accuracy ")[1].split()[0])
    best = max(event["values"]["accuracy"] for event in live.events("evaluation"))
    assert found == pytest.approx(best, abs=1e-6)


def test_what_does_not_fit_is_listed_all_at_once(sources: dict[str, Live]) -> None:
    import torch

    run = sources["torch"].run.path
    layers = [torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(1, 1))
    with pytest.raises(UserError) as caught:
        library.load_weights(model, run)
    for line in (
        "2.weight: (32, 32) in the source, (16, 32) in the model",
        "4.weight: (1, 32)",
        "5.bias: in the model only",
    ):
        assert line in str(caught.value)
    library.load_weights(model, run, strict=False)
    assert_equal({"weight": model[0].weight.detach()}, {"weight": library.load(run)["0.weight"]})
    with pytest.raises(UserError, match=r"these are weights of PyTorch, and the model is an int"):
        library.load_weights(1, run, strict=False)


def test_the_checkpoint_that_was_meant_is_read(sources: dict[str, Live]) -> None:
    run = sources["torch"].run
    first = library.load(run.path, step=2)
    assert_equal(first, library.load(sources["torch"].checkpoint(2)))
    assert_equal(library.load(run.id, runs=run.path.parent), library.load(run.path, step=4))
    assert not np.array_equal(first["0.weight"], library.load(run.path)["0.weight"])
    with pytest.raises(UsageError, match=r"no checkpoint of step 3\s+There are those of the steps 2, 4"):
        library.load(run.path, step=3)
    with pytest.raises(UsageError, match=r"have no metric 'acuracy'"):
        library.load(run.path, best="acuracy")


def test_a_run_at_a_url_is_read_and_what_was_damaged_there_is_not(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'there'}"
    short = ("--set", "train.steps=4", "--set", "checkpoint.every_steps=2", "--set", f"storage.url={url}")
    live = finished(TORCH, *short, runs=tmp_path / "runs")
    whole = library.load(f"{url}/{live.run.id}", runs=tmp_path / "one")
    assert_equal(whole, library.load(live.run.path))
    (tensors,) = (tmp_path / "there" / live.run.id / "checkpoints").glob("step-00000004*/__0_0.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-100] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step 4 cannot be used: __0_0.safetensors was damaged"):
        library.load(f"{url}/{live.run.id}", runs=tmp_path / "other")
    assert library.load(f"{url}/{live.run.id}", 2, runs=tmp_path / "other")
    frozen = finished(
        TORCH, *FROZEN, "--set", f"init_from={{source: {url}/{live.run.id}, step: 2}}", runs=tmp_path / "next"
    )
    assert_equal(library.load(frozen.run.path), library.load(live.run.path, 2))


def test_files_of_torch_hold_the_weights_for_other_programs(digits_of_torch: Live, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    run, expected = str(digits_of_torch.run.path), library.load(digits_of_torch.run.path)
    for name in ("m.safetensors", "m.pt"):
        dtrain("weights", run, "--to", name, cwd=tmp_path)
    assert_equal(expected, load_file(tmp_path / "m.safetensors"))
    assert_equal(expected, torch.load(tmp_path / "m.pt", weights_only=True))
    for name, said in (
        ("m.pt", "is there already"), ("m.onnx", "End it with one of: .safetensors"), ("no/m.pt", "nothing can be written in"),
    ):  # fmt: skip
        assert said in dtrain("weights", run, "--to", name, cwd=tmp_path, check=2).stderr
    assert "has no save_pretrained" in dtrain("weights", run, "--to", "hub/", cwd=tmp_path, check=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "m.safetensors"]


def test_files_of_keras_hold_the_weights_for_other_programs(digits_of_tensorflow: Live, tmp_path: Path) -> None:
    run, expected = str(digits_of_tensorflow.run.path), library.load(digits_of_tensorflow.run.path)
    for name in ("m.keras", "m.weights.h5"):
        dtrain("weights", run, "--to", name, cwd=tmp_path)
    outside(READ_KERAS.format(programs=str(RECIPES)), tmp_path)
    with np.load(tmp_path / "read.npz") as read:
        assert_equal({name[:5]: array for name, array in expected.items()}, dict(read))


def test_a_folder_of_hugging_face_goes_out_and_comes_in_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = ("--set", "train.steps=1", "--set", "train.global_batch=4")
    live = finished(str(RECIPES / "docstrings_task.yaml"), *recipe, "--workers", "1", runs=tmp_path / "one")
    dtrain("weights", str(live.run.path), "--to", "hub", cwd=tmp_path)
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    written = load_file(tmp_path / "hub/model.safetensors")
    assert "lm_head.weight" not in written, "it is tied to another one, which stands for both"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    assert tokenizer("dä")["input_ids"] == list("dä".encode())
    assert tokenizer.decode(tokenizer("dä")["input_ids"]) == "dä"
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hub").state_dict()
    assert_equal(library.load(live.run.path), read)
    again = finished(
        str(RECIPES / "docstrings_task.yaml"), *recipe, "--strategy", "fsdp", "--set", f"init_from={tmp_path / 'hub'}",
        runs=tmp_path / "two",
    )  # fmt: skip
    assert "the training begins with the weights of" in again.output(0)


@pytest.mark.parametrize(
    ("strategy", "workers", "more"),
    [("ddp", 2, ()), ("fsdp", 2, ("strategy.wrap_parameters=100",)), ("hsdp", 4, ("strategy.wrap_parameters=100", "strategy.replicas=2")),
     ("horovod", 2, ())],
)  # fmt: skip
def test_a_torch_run_begins_with_the_weights_of_another(
    strategy: str, workers: int, more: tuple[str, ...], sources: dict[str, Live], tmp_path: Path
) -> None:
    settings = [part for one in more for part in ("--set", one)]
    begins = f"init_from={{source: {sources['torch'].run.path}, step: 2}}"
    live = finished(
        TORCH, *FROZEN, "--strategy", strategy, "--workers", str(workers), *settings, "--set", begins, runs=tmp_path
    )
    assert_equal(library.load(live.run.path), library.load(sources["torch"].run.path, 2))


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("mirrored", ()), ("multi_worker_mirrored", ()), ("horovod", ("strategy.framework=tensorflow",))],
)
def test_a_tensorflow_run_begins_with_the_weights_of_another(
    strategy: str, more: tuple[str, ...], sources: dict[str, Live], tmp_path: Path
) -> None:
    settings = [part for one in more for part in ("--set", one)]
    begins = ("--set", f"init_from={sources['tensorflow'].run.path}")
    live = finished(TENSORFLOW, *FROZEN_TF, "--strategy", strategy, "--workers", "2", *settings, *begins, runs=tmp_path)
    assert_equal(library.load(live.run.path), library.load(sources["tensorflow"].run.path))


def test_a_run_begins_with_a_file(digits_of_tensorflow: Live, sources: dict[str, Live], tmp_path: Path) -> None:
    import torch

    weights = library.load(sources["torch"].run.path)
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "ddp.pt")
    live = finished(TORCH, *FROZEN, "--set", f"init_from={tmp_path / 'ddp.pt'}", runs=tmp_path / "torch")
    assert_equal(library.load(live.run.path), weights)
    dtrain("weights", str(sources["tensorflow"].run.path), "--to", "m.keras", cwd=tmp_path)
    keras = finished(TENSORFLOW, *FROZEN_TF, "--set", f"init_from={tmp_path / 'm.keras'}", runs=tmp_path / "keras")
    assert_equal(library.load(keras.run.path), library.load(sources["tensorflow"].run.path))


@pytest.mark.parametrize(("recipe", "frozen"), [(TORCH, FROZEN), (TENSORFLOW, FROZEN_TF)], ids=["torch", "tensorflow"])
def test_what_does_not_fit_ends_the_run_before_it_trains_unless_that_is_wanted(
    recipe: str, frozen: tuple[str, ...], sources: dict[str, Live], tmp_path: Path
) -> None:
    source = sources["torch" if recipe == TORCH else "tensorflow"].run.path
    options = (recipe, *frozen, "--set", "params.width=16")
    live = finished(*options, "--set", f"init_from={source}", runs=tmp_path / "strict", code=1)
    said = live.output(0)
    assert said.count("in the source, (") == 3, said
    assert not live.events("training_started")
    loose = finished(*options, "--set", f"init_from={{source: {source}, strict: false}}", runs=tmp_path / "loose")
    warned = " ".join(event["text"] for event in loose.events("user_warned"))
    assert "of another shape in the source, so that the model kept its own" in warned


def test_a_resumed_run_goes_on_from_its_own_checkpoint(sources: dict[str, Live], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sources["torch"].run.path, source)
    slow = ("--set", f"init_from={source}", "--set", "params.pause=0.05")
    live = stopped(TORCH, *slow, runs=tmp_path / "runs", step=6)
    shutil.rmtree(source)
    with start("last", runs=tmp_path / "runs", command="resume") as again:
        again._run = live.run
        again.finish()
    assert live.output(0).count("the training begins with the weights of") == 1
    assert wait_for(lambda: live.events("attempt_started")[-1]["step"] >= 6, "the second attempt")


def test_the_plan_shows_what_a_run_begins_with_and_refuses_what_is_not_there(
    sources: dict[str, Live], tmp_path: Path
) -> None:
    run = sources["torch"].run
    shown = dtrain("plan", TORCH, "--set", "init_from=last", "--runs", str(run.path.parent)).stdout
    assert f"begins with the weights of {run.path}, step 4" in shown
    for value, said in (
        ("nobody", "no run 'nobody'"), ("weights.pt", "there is no file"), ("{source: last, step: 3}", "those of the steps 2, 4"),
        ("{source: last, stpe: 2}", "Did you mean 'step'"), ("{source: last, best: acc}", "have no metric 'acc'"),
    ):  # fmt: skip
        refused = dtrain("plan", TORCH, "--set", f"init_from={value}", "--runs", str(run.path.parent), check=2).stderr
        assert said in refused, refused
    (tmp_path / "s.yaml").write_text("script: s.py\ninit_from: last\n")
    (tmp_path / "s.py").write_text("")
    refused = dtrain("plan", str(tmp_path / "s.yaml"), "--runs", str(run.path.parent), check=2).stderr
    assert "a script loads its own weights" in refused
