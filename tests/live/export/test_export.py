"""Trained models leave dtrain in every form, and what left gives the same outside of the framework that trained it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import DTRAIN, PROGRAMS, RECIPES, Live, dtrain, finished, wait_for
from sklearn.datasets import load_digits

FORMS = [
    *(("torch", name) for name in ("onnx", "pt2", "torchscript", "safetensors", "aoti")),
    *(("tensorflow", name) for name in ("savedmodel", "litert", "onnx", "keras", "safetensors", "tfjs")),
]
THIRD_PARTY = str(PROGRAMS / "third_party")


@pytest.fixture
def runs_of(digits_of_torch: Live, digits_of_tensorflow: Live) -> dict[str, Live]:
    return {"torch": digits_of_torch, "tensorflow": digits_of_tensorflow}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Live]:
    """From the name of a task with an odd model to a run of it."""
    runs, known = tmp_path_factory.mktemp("odd"), dict[str, Live]()

    def trained(task: str) -> Live:
        if task not in known:
            strategy = "mirrored" if "_tf" in task else "ddp"
            options = ("--set", f"task={task}", "--strategy", strategy)
            known[task] = finished(str(PROGRAMS / "exports.yaml"), *options, runs=runs)
        return known[task]

    return trained


def exported(
    live: Live, *options: str, folder: Path, check: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return dtrain("export", str(live.run.path), *options, cwd=folder, check=check, **environment)


@pytest.mark.parametrize(("framework", "name"), FORMS)
def test_every_form_gives_the_same(framework: str, name: str, runs_of: dict[str, Live], tmp_path: Path) -> None:
    live = runs_of[framework]
    found = json.loads(exported(live, "--to", name, "--json", folder=tmp_path).stdout)
    verification = found["verification"]
    assert verification["problem"] == ""
    assert verification["absolute"] < 1e-4
    assert verification["batch_sizes"] == [16, 5]
    assert verification["samples"] > 200
    for trained, there in verification["metrics"].values():
        assert there == pytest.approx(trained, rel=1e-4)
    assert found["inputs"][0]["shape"][0] is None, "the batch is of any size"
    path = Path(found["path"])
    beside = path / "export.json" if path.is_dir() else path.with_name(f"{path.name}.export.json")
    record = json.loads(beside.read_text())
    assert (record["step"], record["weights_digest"]) == (60, live.weights())
    assert record["versions"]["dtrain"]
    assert set(tmp_path.iterdir()) <= {path, beside}
    if name in OUTSIDE:
        assert_accuracy_of_the_run(path, name, framework, live)


def onnx_outside(path: Path, live: Live) -> Callable[[Any], Any]:
    """In onnxruntime."""
    import onnx
    import onnxruntime

    metadata = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert metadata["dtrain.weights_digest"] == live.weights()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def litert_outside(path: Path, live: Live) -> Callable[[Any], Any]:
    """In the interpreter of LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda images: next(iter(runner(input=images).values()))


OUTSIDE = {"onnx": onnx_outside, "litert": litert_outside}
"""Form → from a file and its run to what gives scores for images, in this process, without the framework."""


def assert_accuracy_of_the_run(path: Path, name: str, framework: str, live: Live) -> None:
    """Over all held-out digits."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.arange(len(labels)) % 5 == 0
    rows = (images[chosen] / 16).astype(np.float32).reshape((-1, 1, 8, 8) if framework == "torch" else (-1, 8, 8, 1))
    scores = np.asarray(OUTSIDE[name](path, live)(rows))
    found = float((scores.argmax(1) == labels[chosen]).mean())
    assert found == pytest.approx(live.events("evaluation")[-1]["values"]["accuracy"], abs=1e-6)


def test_the_best_checkpoint_is_exported_and_its_latency_measured(digits_of_torch: Live, tmp_path: Path) -> None:
    options = ("--to", "torchscript", "--best", "accuracy", "--latency", "--output", "m.pt")
    done = exported(digits_of_torch, *options, folder=tmp_path)
    assert "PyTorch has deprecated TorchScript" in done.stdout
    assert re.search(r"latency +batch +trained +exported\n +1 .* ms .*/s .* ms .*/s\n +16 ", done.stdout)
    record = json.loads((tmp_path / "m.pt.export.json").read_text())
    of_step = {event["step"]: event["values"]["accuracy"] for event in digits_of_torch.events("evaluation")}
    assert of_step[record["step"]] == max(of_step.values())
    assert [speed["batch"] for speed in record["speeds"]] == [1, 16]


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [("exports.py:Branching", "pt2", r"decides by the values of a tensor in .*exports.py, line 34"),
     ("exports.py:Operator", "onnx", r"no form of the operator prims.bessel_j0"),
     ("exports.py:Fixed", "pt2", r"on a batch of 5: .*Nothing was written"),
     ("exports.py:Random", "onnx", r"does not give the same twice"),
     ("exports_tf.py:Operator", "litert", r"no form of the operator BesselI0e"),
     ("exports_tf.py:Operator", "keras", r"names your own classes \(Bessel\)")],
)  # fmt: skip
def test_what_a_form_cannot_hold_is_said_once_with_what_else_would_work(
    task: str, name: str, said: str, odd: Callable[[str], Live], tmp_path: Path
) -> None:
    done = exported(odd(task), "--to", name, folder=tmp_path, check=1)
    assert re.search(said, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["loop", "own_data"])
def test_the_model_of_a_function_is_exported_without_training_it(function: str, tmp_path: Path) -> None:
    options = ("--set", "task=null", "--set", f"function=exports.py:{function}")
    live = finished(str(PROGRAMS / "exports.yaml"), *options, runs=tmp_path / "runs")
    found = json.loads(exported(live, "--to", "onnx", "--output", "m.onnx", "--json", folder=tmp_path).stdout)
    assert found["verification"]["batch_sizes"] == [16, 5]
    assert found["inputs"][0]["shape"] == [None, 6]
    assert found["weights_digest"] == live.weights()


def test_what_gives_something_else_is_not_left_there(odd: Callable[[str], Live], tmp_path: Path) -> None:
    live = odd("exports.py:Relu")
    exported(live, "--to", "elsewhere", folder=tmp_path, PYTHONPATH=THIRD_PARTY)
    (tmp_path / "exports.npz").unlink()
    (tmp_path / "exports.npz.export.json").unlink()
    wrong = exported(live, "--to", "elsewhere", "--set", "add=0.001", folder=tmp_path, check=1, PYTHONPATH=THIRD_PARTY)
    assert "is not equal to the trained one" in wrong.stderr
    assert not list(tmp_path.iterdir())
    mistaken = exported(live, "--to", "elsewhere", "--set", "ad=1", folder=tmp_path, check=2, PYTHONPATH=THIRD_PARTY)
    assert "Did you mean 'add'?" in mistaken.stderr


def test_tf_serving_gets_a_numbered_model_and_its_configuration(digits_of_tensorflow: Live, tmp_path: Path) -> None:
    exported(digits_of_tensorflow, "--layout", "tf-serving", "--output", "digits", folder=tmp_path)
    assert (tmp_path / "digits/1/saved_model.pb").is_file()
    assert 'base_path: "/models/digits"' in (tmp_path / "digits/models.config").read_text()
    assert "max_batch_size { value: 32 }" in (tmp_path / "digits/batching.config").read_text()


def test_triton_gets_versions_of_a_model_and_their_configuration(digits_of_torch: Live, tmp_path: Path) -> None:
    layout = ("--layout", "triton", "--output", "digits")
    exported(digits_of_torch, *layout, "--step", "40", folder=tmp_path)
    again = exported(digits_of_torch, *layout, folder=tmp_path, check=2)
    assert "digits/1 is there already" in again.stderr
    exported(digits_of_torch, *layout, "--model-version", "2", folder=tmp_path)
    steps = [json.loads((tmp_path / f"digits/{one}/export.json").read_text())["step"] for one in (1, 2)]
    assert steps == [40, 60]
    config = (tmp_path / "digits/config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in config
    assert 'name: "input" data_type: TYPE_FP32 dims: [ 1, 8, 8 ]' in config
    assert "dynamic_batching" in config
    assert (tmp_path / "digits/2/model.onnx").is_file()
    archived = exported(digits_of_torch, "--layout", "torchserve", folder=tmp_path, check=2)
    assert "archived" in archived.stderr


def test_mistakes_are_said_before_anything_is_built(digits_of_torch: Live, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    for options, said in (
        (("--to", "onix"), "Did you mean 'onnx'?"),
        (("--to", "litert"), "For torch: aoti, onnx, pt2, safetensors, torchscript"),
        (("--to", "onnx", "--output", "there.onnx"), "is there already, and is not overwritten"),
        (("--to", "onnx", "--output", "no/where.onnx"), "nothing can be written in"),
        (("--to", "onnx", "--step", "7"), "There are those of the steps 20, 40, 60"),
        (("--to", "onnx", "--set", "opset=x"), "should be a valid integer"),
        (("--layout", "tf-serving"), "serves models of tensorflow"),
        (("--to", "onnx", "--code", str(tmp_path / "gone")), "Name it: --code FOLDER"),
    ):
        assert said in exported(digits_of_torch, *options, folder=tmp_path, check=2).stderr
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_damaged_checkpoint_is_named_and_the_others_offered(digits_of_torch: Live, tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(digits_of_torch.run.path, run)
    folder = run / "checkpoints" / digits_of_torch.checkpoint(60).name
    tensors = folder / "__0_0.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-100] ^= 1
    tensors.write_bytes(content)
    done = dtrain("export", str(run), "--to", "onnx", cwd=tmp_path, check=3)
    assert "__0_0.safetensors is not what was written (its digest differs)" in done.stderr
    assert "there are those of the steps 20, 40" in done.stderr
    dtrain("weights", str(run), "--step", "40", "--to", "m.pt", cwd=tmp_path)
    assert folder.is_dir(), "it is not set aside by a reader"


def test_an_interrupted_export_leaves_nothing(digits_of_torch: Live, tmp_path: Path) -> None:
    command = [*DTRAIN, "export", str(digits_of_torch.run.path), "--to", "aoti"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob(".*.aside")), "the folder aside")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not list(tmp_path.iterdir())


def test_a_run_whose_code_moved_is_exported_from_where_it_is(digits_of_torch: Live, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(digits_of_torch.run.path, run)
    job = json.loads((run / "job.json").read_text())
    (run / "job.json").write_text(json.dumps(job | {"folder": "/no/longer/there"}))
    dtrain("export", str(run), "--to", "safetensors", "--code", str(RECIPES), cwd=tmp_path)
    assert (tmp_path / "digits_ddp.safetensors").is_file()
