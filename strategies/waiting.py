"""Frames of stacks in which a rank waits for the other ones, by file and function. Importing this module imports no framework."""

from __future__ import annotations

import re

GRADIENTS = "the backward pass, which sums the gradients of all ranks"
TENSORFLOW = "a function of TensorFlow's"
FRAMES: tuple[tuple[str, str, str], ...] = (
    (
        r"/torch/distributed/(distributed_c10d|_functional_collectives)\.py",
        r"all_reduce|all_gather\w*|all_to_all\w*|reduce\w*|broadcast\w*|gather\w*|scatter\w*|barrier|monitored_barrier|send|recv"
        r"|batch_isend_irecv|_?new_group\w*|init_process_group|wait_tensor",
        "",
    ),
    (r"/torch/distributed/rendezvous\.py", r"\w+", "the rendezvous"),
    (r"/torch/autograd/graph\.py", "_engine_run_backward", GRADIENTS),
    (
        r"/horovod/(torch|tensorflow)/.*\.py",
        r"synchronize|wait|allreduce|allgather|broadcast\w*|alltoall|barrier|join",
        "",
    ),
    (r"/tensorflow/python/eager/execute\.py", "quick_execute|execute", TENSORFLOW),
    (r"/strategies/torch/exact\.py", "gather|finish|__call__", "the sum of all ranks' gradients (train.exact)"),
)
"""Ends of files, functions, and in what a rank waits there; '': in the function."""
_KNOWN = [(re.compile(f".*{file}"), re.compile(function), what) for file, function, what in FRAMES]


def waits_in(file: str, function: str) -> str:
    """Of all frameworks, since a program may use any."""
    for files, functions, what in _KNOWN:
        if files.fullmatch(file) and functions.fullmatch(function):
            return what or function
    return ""
