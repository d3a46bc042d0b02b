"""Two supervisors of one run, each held up anywhere: a model with three of them, dtrain's own code at every pair of operations on the storage,
real runs that are held up at each place of a supervisor's life while another machine takes over (on a folder and on S3, with and without
locks), and real runs that are suspended at random moments.

`python tests/campaign/fencing.py --rounds 20 --seed 1`; a round that fails prints what repeats it."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from explorer import explore
from fencing import RECIPE, assert_whole_at, assert_whole_from_a_third_machine, started
from live import Live, process_tree, silence, start, suspended, wait_for
from matrix import PLACES, shim
from protocol_model import NEW, Store, Supervisor, remote
from s3_endpoint import endpoint
from two_supervisors import OPERATIONS, both, problem

from dtrain.common.errors import DtrainError
from dtrain.storage import run_lease

MOST_SECONDS = 12.0
"""Until a run is suspended, and until the other machine is stopped waiting for."""


def model_of_three() -> int:
    """1 if a promise can be broken."""
    found, seen = explore(replace(remote(NEW), begin=Store(supervisors=(Supervisor(),) * 3)), most=10_000_000)
    print(f"model of three supervisors: {found or 'every promise is kept'} in {seen:,} states", flush=True)
    return int(found is not None)


def every_pair() -> int:
    """The number of pairs of operations at which something goes wrong."""
    wrong = 0
    with mock.patch.object(run_lease, "age_seconds", lambda _: 3600.0):
        for pair in itertools.product(range(1, OPERATIONS + 1), repeat=2):
            with tempfile.TemporaryDirectory(prefix="fencing-") as folder:
                if text := problem(Path(folder), both(Path(folder), *pair)):
                    wrong += 1
                    print(f"held up before the operations {pair}: {text}", flush=True)
    print(f"own code, held up at {OPERATIONS}² pairs of operations: {wrong} wrong", flush=True)
    return wrong


def round_of(seed: int) -> str:
    """What was wrong; '' if nothing was."""
    chance = random.Random(seed)
    until, later = chance.uniform(0, MOST_SECONDS), chance.uniform(0, 2 * MOST_SECONDS)
    with tempfile.TemporaryDirectory(prefix="fencing-") as name, ExitStack() as stack:
        folder = Path(name)
        live = stack.enter_context(started(folder / "there", folder / "one"))
        live.wait_event("run_started")
        claims = folder / "there" / live.run.id / "supervisors"
        while not list(claims.glob("*")):
            time.sleep(0.01)
        time.sleep(until)
        live.see()
        with suspended(process_tree(live.process.pid)):
            silence(claims)
            url = f"file://{folder}/there/{live.run.id}"
            second = stack.enter_context(
                start(url, "--set", "params.pause=0.05", command="resume", runs=folder / "two")
            )
            time.sleep(later)
        first_code, second_code = live.process.wait(300), second.process.wait(300)
        try:
            # A run that had ended before it was suspended is not resumed; one of two that go on is lost.
            assert (first_code, second_code) in ((3, 0), (0, 2), (0, 0), (3, 2)), (first_code, second_code)
            assert 0 in (first_code, second_code)
            assert_whole_from_a_third_machine(folder / "there", live, folder / "three")
        except AssertionError as error:
            return f"suspended after {until:.2f} s for {later:.2f} s: {error}"
    return ""


def attempts_of(live: Live) -> set[int]:
    """The numbers of the attempts in this machine's copy of the log."""
    return {event["attempt"] for event in live.events("attempt_started")}


def held_up(place: str, store: str, *, locks: bool, wakes: str) -> str:
    """What was wrong with a run whose supervisor stood still at a place until another one had taken over, or had ended; '' if nothing was."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as name, ExitStack() as stack:
        folder = Path(name)
        environment = {"PYTHONPATH": shim(folder / "shim", locks=locks)}
        url = f"file://{folder}/there"
        if store == "s3":
            s3 = stack.enter_context(endpoint(folder))
            environment, url = environment | s3.environment, s3.url
        options = (
            "--workers",
            "1",
            "--set",
            "params.pause=0.05",
            "--set",
            "recovery.heartbeat_seconds=600",
            "--set",
            "checkpoint.keep=1",
        )
        file = folder / "held-up"
        told = {"HELD_UP_AT": place, "HELD_UP_FILE": str(file)}
        live = stack.enter_context(
            start(RECIPE, *options, "--set", f"storage.url={url}", runs=folder / "one", **environment, **told)
        )
        try:
            wait_for(file.exists, place, 120)
            live.see()
            attempts = attempts_of(live)
            time.sleep(61.0 if store == "s3" else 0.5)  # the clock of S3 cannot be set
            if store != "s3":
                silence(folder / "there" / live.run.id / "supervisors")
            second = stack.enter_context(
                start(
                    f"{url}/{live.run.id}",
                    "--set",
                    "params.pause=0",
                    command="resume",
                    runs=folder / "two",
                    **environment,
                )
            )
            if wakes == "after its end":
                second.process.wait(300)
            else:
                wait_for(lambda: second.process.poll() is not None or attempts_of(second) - attempts, "its attempt")
            os.kill(int(file.read_text()), signal.SIGCONT)
            codes = live.process.wait(300), second.process.wait(300)
            assert codes == (3, 0) or (place == "finished" and codes in ((0, 2), (0, 0), (3, 0))), codes
            with mock.patch.dict(os.environ, environment):
                assert_whole_at(f"{url}/{live.run.id}", folder / "three")
        except (AssertionError, DtrainError) as error:
            return str(error) or "an assertion"
        finally:
            for pid in live.pids_seen:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
    return ""


def matrix(places: list[str], stores: list[str]) -> int:
    """The number of cases in which something is wrong."""
    wrong = 0
    for case in itertools.product(places, stores, (True, False), ("while it trains", "after its end")):
        place, store, locks, wakes = case
        text = held_up(place, store, locks=locks, wakes=wakes)
        wrong += bool(text)
        print(f"{place}, {store}, {'locks' if locks else 'no locks'}, wakes {wakes}: {text or 'whole'}", flush=True)
    return wrong


def main() -> int:
    """Print what was found; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["model", "pairs", "matrix", "rounds"], help="one part")
    parser.add_argument("--stores", default="file,s3", help="of the matrix")
    parser.add_argument("--places", default=",".join(PLACES), help="of the matrix")
    chosen = parser.parse_args()
    parts: dict[str, Callable[[], int]] = {
        "model": model_of_three,
        "pairs": every_pair,
        "matrix": lambda: matrix(chosen.places.split(","), chosen.stores.split(",")),
    }
    wrong = sum(part() for name, part in parts.items() if chosen.only in (None, name))
    if chosen.only not in (None, "rounds"):
        return int(wrong > 0)
    for seed in range(chosen.seed, chosen.seed + chosen.rounds):
        text = round_of(seed)
        wrong += bool(text)
        print(f"round {seed}: {text or 'whole'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
