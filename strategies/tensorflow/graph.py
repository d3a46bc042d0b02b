"""Checks a traced TensorFlow function before it runs: shapes that change, numbers that nobody could draw again.

Importing this module imports no framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtrain.common import source_files
from dtrain.common.errors import DtrainError, Exit

NODE = re.compile(r"\{\{node ([^}]+)\}\}")
NO_SOURCES = ("TensorList", "Placeholder")
"""Begin the types of operations whose shapes are open without being dynamic: XLA knows the lengths of lists, and what a
function is given comes from outside of it."""
OWN_STATE = re.compile(
    r"Random(Standard|Uniform|Gamma|Poisson|Shuffle|Crop)\w*|(Parameterized)?TruncatedNormal|Multinomial"
    r"|Stateful(StandardNormal|Uniform|TruncatedNormal|RandomBinomial)\w*|RngReadAndSkip|RngSkip"
)
"""Types of operations that draw from a generator of their own."""


class RehearsalFailed(DtrainError):
    """A TPU could not run the model's step."""

    exit_code = Exit.USER_CODE


def operations(graph: Any) -> Iterator[Any]:
    """Yield the operations of a graph and of all functions that it calls (loops, branches)."""
    for operation in graph.get_operations():
        yield operation
        for attribute in operation.node_def.attr.values():
            for name in (attribute.func.name, *(function.name for function in attribute.list.func)):
                inner = getattr(graph._get_function(name), "graph", None) if name else None
                if inner is not None:
                    yield from operations(inner)


def refuse_own_randomness(graph: Any) -> None:
    """Raise `TypeError` for the first operation whose random numbers do not follow from the seed of the step: a resumed run
    would draw others, and so would another number of replicas."""
    definition = graph.as_graph_def()
    nodes = (node for part in (definition.node, *(f.node_def for f in definition.library.function)) for node in part)
    if not any(OWN_STATE.fullmatch(node.op) for node in nodes):
        return
    for operation in operations(graph):
        if OWN_STATE.fullmatch(operation.type):
            raise TypeError(
                f"{operation.name} ({operation.type}{made_at(operation)}) draws from a generator that no checkpoint holds: "
                "use keras.random or Keras's layers, whose numbers follow from the seed of the step"
            )


def refuse_dynamic_shapes(graph: Any) -> None:
    """Raise `RehearsalFailed` for the first operation whose result has a shape that its inputs' shapes do not give."""
    for operation in operations(graph):
        if operation.type.startswith(NO_SOURCES) or not all(_static(tensor) for tensor in operation.inputs):
            continue
        for tensor in operation.outputs:
            if not _static(tensor):
                raise RehearsalFailed(
                    f"the model has a dynamic shape: the operation {operation.name} ({operation.type}{made_at(operation)}) "
                    f"gives {tensor.shape}, known only when it runs",
                    "A TPU needs static shapes: select with tf.where(condition, a, b) or by multiplying with a mask, and pad.",
                )


def not_compiled(graph: Any, text: str) -> RehearsalFailed:
    """XLA's own refusal in our words."""
    named = NODE.search(text)
    name = named.group(1) if named else "an operation"
    operation = next((one for one in operations(graph) if one.name == name), None)
    kind = f" ({operation.type}{made_at(operation)})" if operation else ""
    hint = "Take another operation in its place, or do this part while the data is made."
    return RehearsalFailed(f"XLA cannot compile {name}{kind}: {text.splitlines()[0][:300]}", hint)


def _static(tensor: Any) -> bool:
    return bool(tensor.shape.is_fully_defined())


def made_at(operation: Any) -> str:
    """The user's line that made an operation, if there is one."""
    frames = [frame for frame in operation.traceback or () if source_files.is_users(frame.filename)]
    return f", made at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
