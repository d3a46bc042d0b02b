"""Several logical CPUs in TensorFlow, which a process can only have from the first use of TensorFlow on."""

from __future__ import annotations

DEVICES = 4


def four() -> None:
    """Idempotent. Have four logical CPUs in this process: whichever test uses TensorFlow first, all of them find as many."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) != DEVICES:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
