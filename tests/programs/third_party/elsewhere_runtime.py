"""Runs what `elsewhere_exporter` wrote."""

import numpy as np


def load(path):
    arrays = list(np.load(path).values())

    def run(inputs):
        values = inputs[0]
        for number in range(0, len(arrays), 2):
            values = (values if number == 0 else np.maximum(values, 0)) @ arrays[number].T + arrays[number + 1]
        return [values]

    return run


def versions():
    return {"numpy": np.__version__}
