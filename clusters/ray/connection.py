"""The connection of this process to Ray: to a running cluster, or to an embedded one that ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from dtrain.agent import devices
from dtrain.common.errors import ClusterError

EMBEDDED = "local"
"""Ray's own name for a cluster that is started by this process. Without it Ray joins whatever runs on the machine."""
NOT_FOR_OTHER_MACHINES = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Makes Ray give a node the address 127.0.0.1, at which alone its processes then listen: its default on desktop systems."""
OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@contextmanager
def connected(address: str | None, runtime_env: dict[str, Any]) -> Iterator[None]:
    """Connect to the cluster at this address or RAY_ADDRESS, or start an embedded one, which joins no other; ends as it began."""
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or EMBEDDED
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "dtrain"}
    if runtime_env and OF_A_JOB not in os.environ:  # a job has its own already
        quiet["runtime_env"] = runtime_env
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with on_the_loopback() if address == EMBEDDED else nullcontext():
        try:
            if address == EMBEDDED:
                quiet |= {"num_cpus": devices.cpus(), "num_gpus": devices.gpus(), "include_dashboard": False}
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address == EMBEDDED:
                raise ClusterError(
                    f"cannot start Ray on this machine: {error}", "See /tmp/ray/session_latest/logs."
                ) from error
            raise ClusterError(f"cannot connect to Ray at {address}: {error}", "Check `ray status`.") from error
        with suppress(ValueError):  # outside the main thread, Ray sets no handler of its own either
            signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def on_the_loopback() -> Iterator[None]:
    """A cluster that is started within listens on the loopback alone."""
    from ray._private import ray_constants

    name, value = NOT_FOR_OTHER_MACHINES
    before = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = value, False  # of Ray's processes, and of this one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        if before[0] is None:
            del os.environ[name]
        else:
            os.environ[name] = before[0]
