"""Handwritten digits from a `tf.data` pipeline: shuffled, shifted at random and prefetched by TensorFlow's own threads."""

import digits_tensorflow
import tensorflow as tf


def shifted(image, label):
    """The image moved by up to a pixel."""
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    return tf.image.random_crop(padded, [8, 8, 1]), label


class Digits(digits_tensorflow.Digits):
    """Single samples come out of the pipeline: dtrain makes the batches, the same at any number of workers."""

    def __init__(self, hidden: int = 64):
        super().__init__(hidden, dropout=0.0)

    def data(self, split):
        samples = tf.data.Dataset.from_tensor_slices(super().data(split))
        if split == "eval":
            return samples
        return samples.shuffle(len(samples)).map(shifted, num_parallel_calls=2).prefetch(64)
