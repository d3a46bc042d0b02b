"""What PyTorch's records of collectives say of a hang, in the recorder's own format; tests/live/scripts has real ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from dtrain.strategies import flight_recorder
from dtrain.strategies.flight_recorder import environment, explain

RANKS = {"0": "[0, 1, 2, 3]", "3": "[0, 1]"}


def call(number: int, name: str = "nccl:all_reduce", group: str = "0", state: str = "completed", **more: Any) -> Any:
    """One entry; `shape` and `created` are given where they matter."""
    description = "default_pg" if group == "0" else "mesh_tp"
    return {
        "process_group": (group, description), "collective_seq_id": number, "p2p_seq_id": 0, "is_p2p": False, "profiling_name": name,
        "input_sizes": [more.get("shape", [8])], "input_dtypes": ["BFloat16"], "state": state, "time_created_ns": more.get("created", number),
        "retired": state == "completed",
    }  # fmt: skip


def record(*entries: Any) -> bytes:
    config = {name: {"name": name, "desc": "", "ranks": members} for name, members in RANKS.items()}
    return pickle.dumps({"version": "2.10", "pg_config": config, "pg_status": {}, "entries": list(entries)})


WAITS = record(call(1), call(2, state="started"))


def test_ranks_that_did_not_join_are_named_with_the_collective() -> None:
    found = explain({0: WAITS, 1: record(call(1)), 2: WAITS, 3: WAITS})
    assert found is not None
    assert (
        found.text
        == "ranks 0, 2, 3 wait in all_reduce number 2 (bfloat16 [8]) of the default group; rank 1 did not join"
    )
    assert found.ranks == {1}


def test_a_rank_without_a_record_is_told_apart_and_blamed_only_if_there_is_nobody_else() -> None:
    found = explain({0: WAITS, 1: WAITS, 2: WAITS})
    assert found is not None
    assert found.text.endswith("; rank 3 left no record")
    assert found.ranks == {3}
    found = explain({0: WAITS, 1: record(call(1)), 2: WAITS})
    assert found is not None
    assert found.text.endswith("; rank 1 did not join; rank 3 left no record")
    assert found.ranks == {1}


def test_another_collective_or_another_shape_at_the_same_place_is_named() -> None:
    other = record(call(1), call(2, "nccl:broadcast", state="started"))
    wider = record(call(1), call(2, shape=[9, 2], state="scheduled"))
    found = explain({0: WAITS, 1: other, 2: WAITS, 3: wider})
    assert found is not None
    assert "ranks 0, 2 wait in all_reduce" in found.text
    assert "rank 1 called broadcast number 2 (bfloat16 [8]) there" in found.text
    assert "rank 3 called all_reduce number 2 (bfloat16 [9, 2]) there" in found.text
    assert found.ranks == {1, 3}


def test_ranks_that_wait_for_each_other_in_two_groups_are_told_so() -> None:
    first = record(call(1), call(1, group="3", state="started", created=50))
    second = record(call(1), call(2, state="started", created=40))
    found = explain({0: first, 1: second, 2: second, 3: second})
    assert found is not None
    assert found.text == (
        "ranks 1 to 3 wait in all_reduce number 2 (bfloat16 [8]) of the default group; "
        "rank 0 waits in all_reduce number 1 (bfloat16 [8]) of the group mesh_tp instead"
    )


def test_if_all_joined_the_network_or_a_gpu_stands_still() -> None:
    found = explain(dict.fromkeys(range(4), WAITS))
    assert found is not None
    assert "ranks 0 to 3 wait in all_reduce number 2" in found.text
    assert "all ranks joined: the network between them, or a GPU, stands still" in found.text
    assert not found.ranks


def test_nothing_is_told_if_nobody_waits() -> None:
    assert explain({0: record(call(1)), 1: record(call(1))}) is None
    assert explain({}) is None


class Bomb:
    """Runs a program when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_a_record_runs_nothing_and_a_garbled_one_is_left_out(tmp_path: Path) -> None:
    forged = pickle.dumps({"entries": [Bomb(tmp_path / "ran")]})
    odd = record({"process_group": 3, "is_p2p": False}, "no entry", *pickle.loads(WAITS)["entries"])
    found = explain({0: WAITS, 1: forged, 2: WAITS[:40], 3: odd})
    assert not (tmp_path / "ran").exists()
    assert found is not None
    assert "ranks 0, 3 wait in all_reduce number 2" in found.text
    assert "ranks 1, 2 left no record" in found.text


def test_records_may_be_json() -> None:
    text = json.dumps(pickle.loads(WAITS)).encode()
    found = explain(dict.fromkeys(range(4), text))
    assert found is not None
    assert "ranks 0 to 3 wait" in found.text


@pytest.mark.parametrize(
    ("version", "size"), [((2, 7), "TORCH_NCCL_TRACE_BUFFER_SIZE"), ((2, 13), "TORCH_FR_BUFFER_SIZE")]
)
def test_the_recorder_is_on_under_the_name_that_this_torch_knows(
    version: tuple[int, int], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_recorder, "_torch_version", lambda: version)
    assert environment()[size] == "500"
    assert len(environment()) == 5
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "0")
    assert size not in environment(), "the user's own setting wins"
