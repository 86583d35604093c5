"""What TensorFlow computes on, settled before its first operation or never.

One thread computes: with more, XLA's sums, and so the bytes, depend on how many cores there are. TensorFlow is imported
where it is first needed.
"""

from __future__ import annotations

from functools import cache


@cache
def configure_devices() -> None:
    """Settle, before the first operation, how many threads compute and how a GPU's memory is taken."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, enable=True)


def device_name() -> str:
    """The device that TensorFlow computes on, in words."""
    import tensorflow as tf

    configure_devices()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))
