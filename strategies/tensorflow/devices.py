"""The devices of a worker as TensorFlow sees them. Importing this module imports no framework."""

from __future__ import annotations

import os
from typing import Any, Literal

from dtrain.api.strategy import RankInfo, WorkerContext
from dtrain.common.errors import DtrainError

Precision = Literal["fp32", "mixed_bfloat16"]


class DevicesMissing(DtrainError):
    """TensorFlow does not see the devices that were asked for."""


def prepare(
    context: WorkerContext,
    *,
    replicas: int | None = None,
    deterministic: bool = True,
    eagerly: bool = False,
    precision: Precision = "fp32",
) -> list[str]:
    """Return this process's devices by name, as many as its place has replicas; before TensorFlow computes anything."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(eagerly)
    if precision != "fp32":  # otherwise a policy of the user's own stays
        import keras

        keras.config.set_dtype_policy(precision)
    if matmul := context.job.train.matmul:
        tf.config.experimental.enable_tensor_float_32_execution(matmul != "highest")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if context.job.resources.device == "gpu":
        return _gpus(context.rank_info)
    count = replicas or context.rank_info.replicas
    tf.config.set_visible_devices([], "GPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"CPU:{number}" for number in range(count)]


def _gpus(rank_info: RankInfo) -> list[str]:
    import tensorflow as tf

    there = tf.config.list_physical_devices("GPU")
    first = rank_info.local_rank * rank_info.replicas
    own = there[first : first + rank_info.replicas]
    if len(own) < rank_info.replicas:
        raise DevicesMissing(
            f"TensorFlow sees {len(there)} GPUs and {rank_info.local_world_size * rank_info.replicas} are needed",
            "Install a TensorFlow with GPU support (pip install 'tensorflow[and-cuda]'), or take --workers N to train on CPUs.",
        )
    tf.config.set_visible_devices(own, "GPU")
    for gpu in own:
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    return [f"GPU:{number}" for number in range(rank_info.replicas)]


def checked(strategy: Any, rank_info: RankInfo) -> Any:
    """A strategy that has as many replicas as were planned."""
    wanted = rank_info.replicas * rank_info.world_size
    if strategy.num_replicas_in_sync != wanted:
        raise DevicesMissing(
            f"{wanted} replicas were asked for and TensorFlow has {strategy.num_replicas_in_sync}",
            f"Take --workers {strategy.num_replicas_in_sync}.",
        )
    return strategy
