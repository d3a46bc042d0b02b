"""What ranks of a hang do, in words, from stacks as faulthandler writes them."""

from __future__ import annotations

import pytest

from dtrain.api.protocol import Inspected
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import registry
from dtrain.record.inspection import SharedStacks
from dtrain.supervisor.failures.hang_stacks import HangStacks, activities, known_of

SITE = "/venv/lib/python3.11/site-packages"
IN_THREADS = f'thread:\n  File "{SITE}/x/threading.py", line 1 in _bootstrap\n'
ALL_REDUCE = [
    f"{SITE}/torch/distributed/distributed_c10d.py:3003:all_reduce", f"{SITE}/torch/distributed/c10d_logger.py:83:wrapper",
    "/home/me/train.py:40:step", "/home/me/train.py:50:<module>",
]  # fmt: skip
BACKWARD = [
    f"{SITE}/torch/autograd/graph.py:869:_engine_run_backward",
    f"{SITE}/torch/autograd/__init__.py:364:backward",
    "/home/me/train.py:41:step",
]
LOADING = [f"{SITE}/PIL/Image.py:3000:open", "/home/me/data.py:31:load_image", "/home/me/train.py:50:<module>"]
BARRIER = [f"{SITE}/torch/distributed/distributed_c10d.py:4900:barrier", "/home/me/train.py:60:save"]
JOB = Job("j", script="train.py", folder="/home/me", strategy=PluginChoice("script"))
OWNER = {0: "a", 1: "a", 2: "b", 3: "b"}
KNOWN = known_of(registry.strategy_of(JOB), JOB)


def stack(*ranks: int, of: list[str]) -> SharedStacks:
    frames = [frame.rsplit(":", 2) for frame in of]
    text = "".join(f'  File "{file}", line {line} in {function}\n' for file, line, function in frames)
    return SharedStacks(ranks, f"{IN_THREADS}thread:\n{text}")


@pytest.mark.parametrize(
    ("stacks", "told", "outside"),
    [
        (
            [stack(0, 2, 3, of=ALL_REDUCE), stack(1, of=LOADING)],
            "ranks 0, 2, 3 wait in all_reduce; rank 1 is in load_image (data.py:31) and did not join", {1},
        ),
        (
            [stack(0, of=BACKWARD), stack(1, 2, of=LOADING)],
            "rank 0 waits in the backward pass, which sums the gradients of all ranks; "
            "ranks 1, 2 are in load_image (data.py:31) and did not join",
            {1, 2},
        ),
        ([stack(0, of=ALL_REDUCE), stack(1, of=BARRIER)], "rank 0 waits in all_reduce; rank 1 waits in barrier", set()),
        ([stack(0, 1, of=LOADING)], "ranks 0, 1 are in load_image (data.py:31)", set()),
        (
            [stack(0, of=ALL_REDUCE), SharedStacks((1,), "is stopped by a signal (SIGCONT lets it go on)")],
            "rank 0 waits in all_reduce; rank 1 is stopped by a signal (SIGCONT lets it go on) and did not join", {1},
        ),
        (
            [SharedStacks((0, 1), "run.sh: sleeping in do_wait\n  sleep: sleeping in hrtimer_nanosleep")],
            "ranks 0, 1 are in sleep (sleeping in hrtimer_nanosleep)", set(),
        ),
        ([], "", set()),
    ],
)  # fmt: skip
def test_ranks_that_wait_and_those_that_did_not_join(stacks: list[SharedStacks], told: str, outside: set[int]) -> None:
    assert activities(stacks, KNOWN) == (told, outside)


def test_the_rank_that_did_not_join_is_to_blame_once_all_nodes_have_answered() -> None:
    stacks = HangStacks("hang-1", {"a", "b"})
    hang = Failure(FailureKind.HANG, "the ranks made no step for 5 s", rank=0, node="a")
    assert stacks.explain(hang, KNOWN, OWNER) is hang
    assert not stacks.add("a", Inspected(1, "a person's", (stack(0, 1, of=LOADING),), {}))
    assert not stacks.add("a", Inspected(1, "hang-1", (stack(0, 1, of=ALL_REDUCE),), {}))
    assert stacks.add("b", Inspected(1, "hang-1", (stack(2, of=ALL_REDUCE), stack(3, of=LOADING)), {}))
    told = stacks.explain(hang, KNOWN, OWNER)
    assert (told.rank, told.node) == (3, "b")
    assert told.message == (
        "the ranks made no step for 5 s: ranks 0 to 2 wait in all_reduce; rank 3 is in load_image (data.py:31) and did not join "
        "(all stacks are in the logs)"
    )
    killed = Failure(FailureKind.KILLED, "killed by SIGKILL", rank=1)
    assert stacks.explain(killed, KNOWN, OWNER) is killed
