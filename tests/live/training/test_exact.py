"""`train.exact`: the same weights and optimizer state to the last bit, whatever trained them, and what shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, start

from dtrain.checkpoint.difference import first_difference
from dtrain.record.folder import RunDir
from dtrain.verify import verification

RECIPE = str(PROGRAMS / "exact.yaml")


def at(workers: int, strategy: str, *more: str) -> tuple[str, ...]:
    return ("--workers", str(workers), "--strategy", strategy, *more)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """One worker, undisturbed."""
    return finished(RECIPE, runs=tmp_path_factory.mktemp("alone"))


def assert_equal(live: Live, other: Live, step: int = 12) -> None:
    """Weights, optimizer state and losses."""
    assert first_difference(live.checkpoint(step), other.checkpoint(step)) is None
    assert live.losses() == other.losses()


@pytest.mark.parametrize(
    "options",
    [
        at(2, "ddp"),
        at(4, "ddp", "--nodes", "2", "--set", "strategy.bucket_mb=0.004"),
        at(8, "ddp"),
        at(2, "fsdp"),
        at(4, "fsdp", "--nodes", "4", "--set", "strategy.wrap=[TransformerEncoderLayer]"),
        at(4, "hsdp", "--nodes", "2"),
        at(8, "hsdp", "--set", "strategy.replicas=4"),
        at(1, "fsdp"),
    ],
    ids=lambda options: "-".join(options[1:4:2]) + ("-nodes" if "--nodes" in options else ""),
)
def test_any_number_of_workers_under_any_strategy_gives_the_same_bits(
    options: tuple[str, ...], alone: Live, tmp_path: Path
) -> None:
    live = finished(RECIPE, *options, runs=tmp_path)
    assert_equal(live, alone)
    if "hsdp" in options:  # its ranks hold other parts, so the digests say nothing
        compared = dtrain("compare", str(live.run.path), str(alone.run.path)).stdout
        assert (
            "weights and optimizer are equal to the last bit at step 12; the losses that both have are equal"
            in compared
        )


@pytest.mark.parametrize(
    "more",
    [
        ("--set", "strategy.activation_checkpointing=[TransformerEncoderLayer]"),
        ("--set", "train.clip_norm=null"),
        ("--set", "strategy.precision=bf16"),
        ("--set", "strategy.precision=fp16"),
    ],
    ids=["activation-checkpointing", "no-clipping", "bf16", "fp16"],
)
def test_with_what_changes_the_arithmetic_too(more: tuple[str, ...], tmp_path: Path) -> None:
    one = finished(RECIPE, *more, runs=tmp_path / "one")
    assert_equal(finished(RECIPE, *at(4, "ddp"), *more, runs=tmp_path / "four"), one)


def test_a_chain_of_kills_shrinks_grows_and_other_strategies_ends_as_undisturbed(alone: Live, tmp_path: Path) -> None:
    slow = ("--set", "checkpoint.every_steps=2", "--set", "train.until=5")
    with start(RECIPE, *at(8, "ddp", "--nodes", "2"), *slow, runs=tmp_path) as live:
        live.wait_step(2)
        live.kill(5)
        live.finish()
    name = str(live.run.path)
    dtrain("resume", name, "--workers", "2", "--nodes", "1", "--set", "strategy=fsdp", "--set", "train.until=7")
    dtrain("resume", name, "--workers", "4", "--nodes", "4", "--set", "strategy=hsdp", "--set", "strategy.replicas=2", "--set", "train.until=9")  # fmt: skip
    dtrain("resume", name, "--workers", "1", "--nodes", "1", "--set", "strategy=ddp", "--set", "train.until=null")
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed"]
    assert first_difference(live.checkpoint(12), alone.checkpoint(12)) is None
    assert "the weights are equal at step 12" in dtrain("compare", name, str(alone.run.path)).stdout
    assert (
        "equal to the last bit" in dtrain("verify", name, "--step", "9", "--workers", "2", "--strategy", "fsdp").stdout
    )


def test_a_function_that_computes_its_shards_one_by_one_has_the_same_bits_and_another_one_is_refused(
    alone: Live, tmp_path: Path
) -> None:
    text = Path(RECIPE).read_text().replace("task: exact.py:Task", f"function: {PROGRAMS}/exact.py:train")
    (tmp_path / "r.yaml").write_text(text.replace("clip_norm: 0.5, ", ""))
    recipe = str(tmp_path / "r.yaml")
    one = finished(recipe, "--set", "params.by_shards=true", runs=tmp_path / "one")
    many = finished(recipe, "--set", "params.by_shards=true", *at(4, "fsdp", "--nodes", "2"), runs=tmp_path / "many")
    assert_equal(many, one)
    task = finished(RECIPE, "--set", "train.clip_norm=null", *at(2, "ddp"), runs=tmp_path / "task")
    assert first_difference(one.checkpoint(12), task.checkpoint(12)) is None, "the same as dtrain's own loop"
    assert "so are the gradients of 32 shards" in dtrain("verify", str(many.run.path), "--workers", "2").stdout
    with start(recipe, "--workers", "2", runs=tmp_path / "refused") as live:
        assert "step 0 was done without context.shards" in live.finish(code=1)


def test_without_it_other_sizes_give_other_bits(tmp_path: Path) -> None:
    loose = ("--set", "train.exact=false", "--set", "train.shards=8")
    one = finished(RECIPE, *loose, runs=tmp_path / "one")
    four = finished(RECIPE, *at(4, "ddp"), *loose, runs=tmp_path / "four")
    assert first_difference(one.checkpoint(12), four.checkpoint(12)) is not None, "this test could not fail otherwise"


def test_one_flipped_bit_in_one_gradient_is_found_and_the_rank_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        Path(RECIPE).read_text().replace("exact.py:", f"{PROGRAMS}/exact.py:") + "resources: {workers: 4, nodes: 2}\n"
    )
    # Two shards a worker: the 13th gradient of rank 2 is that of its first shard in step 7.
    with start(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", FLIP="13:2") as live:
        live.finish()
    name = str(live.run.path)
    assert "equal to the last bit" in dtrain("verify", name, "--step", "4").stdout
    said = dtrain("verify", name, "--step", "8", "--workers", "1", check=1).stdout
    assert "the result DIFFERS" in said
    assert "the first other gradient: step 7, shard 4, which rank 2 (node1) computed" in said
    found = json.loads(dtrain("verify", name, "--step", "8", "--workers", "2", "--json", check=1).stdout)
    assert found["gradient"] == {"step": 6, "shards": [4], "ranks": [2], "nodes": ["node1"], "every": False}
    assert found["tensor"]["name"]


def test_a_run_without_it_is_verified_on_as_many_workers(tmp_path: Path) -> None:
    live = finished(RECIPE, *at(2, "ddp"), "--set", "train.exact=false", runs=tmp_path)
    name = str(live.run.path)
    assert "are equal to the last bit\n" in dtrain("verify", name).stdout
    assert "other numbers of workers give other bits" in dtrain("verify", name, "--workers", "1", check=2).stderr
    assert len(list(tmp_path.iterdir())) == 1, "nothing is left of the repetition"


def test_a_checkpoint_may_be_deleted_while_it_is_verified(
    alone: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run does that keeps few of them and goes on."""
    shutil.copytree(alone.run.path, tmp_path / alone.run.id)
    run, train = RunDir(tmp_path / alone.run.id), verification._train

    def train_and_delete(again: RunDir, *, quiet: bool) -> None:
        shutil.rmtree(run.checkpoints)
        train(again, quiet=quiet)

    monkeypatch.setattr(verification, "_train", train_and_delete)
    found = verification.verify(run, [], None, quiet=True)
    assert (found.end, found.equal) == (12, True)


def test_a_run_is_verified_while_it_goes_on(tmp_path: Path) -> None:
    slow = ("--set", "checkpoint.every_steps=100", "--set", "train.steps=400", "--set", "train.log_every=100")
    with start(RECIPE, *at(2, "ddp"), *slow, runs=tmp_path) as live:
        live.wait_event("checkpoint_saved")
        said = dtrain("verify", str(live.run.path), "--every", "100", "--workers", "1").stdout.splitlines()
        live.finish()
    assert said[-1].startswith(f"{live.run.id}: steps 301 to 400 were trained again: weights and optimizer are equal")
    assert len(said) >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("strategy: horovod", "'horovod' adds gradients in an order of its own"),
        ("resources: {workers: 3}", "3 is no power of two, which train.exact needs"),
        (
            "resources: {workers: 6}\ntrain: {steps: 1, global_batch: 48, shards: 6, exact: true}",
            "6 is no power of two",
        ),
        ("strategy: {name: ddp, compression: bf16}", "leave strategy.compression out"),
        ("strategy: {name: hsdp, replicas: 4}\nresources: {workers: 4}", "groups of one worker each split nothing"),
    ],
    ids=["horovod", "workers", "power-of-two", "compression", "hsdp"],
)
def test_what_cannot_be_exact_is_refused_before_the_start(change: str, words: str, tmp_path: Path) -> None:
    changed = [line.partition(":")[0] for line in change.splitlines()]
    kept = [line for line in Path(RECIPE).read_text().splitlines() if line.partition(":")[0] not in changed]
    text = "\n".join([*kept, *(line for line in change.splitlines() if not line.endswith("null"))])
    (tmp_path / "r.yaml").write_text(text.replace("exact.py:", f"{PROGRAMS}/exact.py:"))
    assert words in dtrain("run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), check=2).stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("params.synchronized=true", "norm is a SyncBatchNorm, whose statistics are of all workers' samples"),
        ("task=exact.py:ByItself", "train_step takes its gradients itself"),
    ],
)
def test_what_only_the_model_shows_is_refused_with_its_name(option: str, words: str, tmp_path: Path) -> None:
    with start(RECIPE, "--set", option, runs=tmp_path) as live:
        out = live.finish(code=1)
    assert words in out
    assert len(live.events("attempt_started")) == 1
