"""The process in which an exported model answers: `python -m dtrain.export.runner ASK ANSWER`, two files of JSON.

It imports the runtime of the export's form and not the framework that trained the model, unless the form holds weights alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.common.processes import die_with_parent
from dtrain.export import timing


def main() -> None:
    """Answer all batches of a request."""
    die_with_parent(os.getppid())
    ask = json.loads(Path(sys.argv[1]).read_text())
    answer: dict[str, Any] = {"problem": "", "batch": None, "versions": {}, "counts": [], "speeds": {}}
    try:
        _answer(ask, answer)
    except Exception as error:  # noqa: BLE001  a runtime may raise anything
        import traceback

        traceback.print_exc()
        answer["problem"] = f"{type(error).__name__}: {str(error).strip() or 'no message'}".partition("\n")[0]
    aside = Path(f"{sys.argv[2]}.aside")
    aside.write_text(json.dumps(answer))
    aside.replace(sys.argv[2])


def _answer(ask: dict[str, Any], answer: dict[str, Any]) -> None:
    import numpy as np

    run, answer["versions"] = _loaded(ask)
    found: dict[str, Any] = {}
    first: list[Any] = []
    with np.load(ask["inputs"]) as file:
        for number in range(ask["batches"]):
            inputs = [file[f"{number}.{place}"] for place in range(ask["arrays"])]
            first = first or inputs
            answer["batch"] = number
            outputs = run(inputs)
            answer["counts"].append(len(outputs))
            found |= {f"{number}.{place}": np.asarray(array) for place, array in enumerate(outputs)}
    answer["batch"] = None
    np.savez(ask["outputs"], **found)
    for size in ask["speeds"]:
        inputs = timing.first_samples(first, size, len(first[0]) if first and first[0].ndim else 1)
        answer["speeds"][size] = timing.milliseconds(partial(run, inputs))


def _loaded(ask: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return the function that runs the exported model, and the versions of its runtime."""
    if not ask["runtime"]:
        from dtrain.export import weights_runtime

        return weights_runtime.load(Path(ask["request"]), Path(ask["path"]))
    module = importlib.import_module(ask["runtime"])
    return module.load(ask["path"]), module.versions()


if __name__ == "__main__":
    main()
