"""Lies beside a drawn program: writes down what its author's code sees in each pass, and has one of its workers killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 30.0


class Watch:
    """The passes of one process."""

    def __init__(self, folder: str = "", kill: list[int] | None = None) -> None:
        """`kill`: the rank that is killed, the number of the pass at whose beginning it is, counted from 1, and the step whose checkpoint
        is waited for before (0: some time for the one in memory)."""
        self.rank = int(os.environ.get("RANK") or os.environ.get("HOROVOD_RANK") or "0")
        self.folder = Path(folder) if folder else None
        self._kill = kill
        self._passes: dict[int, int] = {}

    def begins(self, step: int) -> None:
        """A script that keeps its own checkpoints goes on from this step."""
        if self.folder is not None and self.rank == 0:
            (self.folder / f"begins-{os.environ.get('DTRAIN_ATTEMPT', '1')}").write_text(str(step))

    def forward(self, inputs: Any, optimizer: Any, *, training: bool) -> None:
        """A forward pass begins; one in evaluation mode is none of the training's. The last column of the inputs is the number of the
        sample."""
        if not training:
            return
        samples = [round(100 * float(one)) for one in inputs.detach().reshape(len(inputs), -1)[:, -1]]
        rates = [float(group["lr"]) for group in optimizer.param_groups] if optimizer is not None else []
        self._saw(self.rank, samples, rates)

    def _saw(self, rank: int, samples: list[int], rates: list[float]) -> None:
        self._passes[rank] = self._passes.get(rank, 0) + 1
        self._strike(rank)
        if self.folder is not None:
            name = f"{os.environ.get('DTRAIN_ATTEMPT', '1')}-{rank}.jsonl"
            with open(self.folder / name, "a") as file:
                file.write(json.dumps({"samples": samples, "rates": rates}) + "\n")

    def in_graph(self, inputs: Any) -> None:
        """A forward pass of a replica of TensorFlow, seen whenever the graph around it runs; one outside of a graph is not the training's."""
        import tensorflow as tf

        if tf.executing_eagerly():
            return
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def see(number: Any, numbers: Any) -> None:
            self._saw(int(number), [round(100 * float(one)) for one in numbers], [])

        tf.numpy_function(see, [replica, inputs[:, -1]], [])

    def _strike(self, rank: int) -> None:
        if self._kill is None or self.folder is None or [rank, self._passes[rank]] != self._kill[:2]:
            return
        mark = self.folder / "struck"
        if not mark.exists():
            mark.write_text("")
            saved = (
                self.folder.parent
                / "runs"
                / os.environ["DTRAIN_RUN"]
                / "checkpoints"
                / f"step-{self._kill[2]:08d}-attempt-0001"
            )
            until = time.monotonic() + (PATIENCE_SECONDS if self._kill[2] else 0.3)
            while time.monotonic() < until and not saved.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
