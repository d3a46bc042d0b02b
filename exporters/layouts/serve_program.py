"""Serves the newest version of the model in this folder with Ray Serve: `cd FOLDER; serve run --working-dir . serve_app:app`.

POST {"inputs": {NAME: nested lists}} gives {"outputs": {NAME: nested lists}}; the first dimension is the batch. Requests that
come at the same time are answered in one batch.
"""

import json
import os
from pathlib import Path

import numpy as np
import runtime
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

FOLDER = Path(os.environ.get("MODEL_FOLDER", Path(__file__).parent))
MOST_REQUESTS = 32
WAIT_SECONDS = 0.002


class WrongInputs(ValueError):
    """What was posted does not fit the model."""


@serve.deployment(max_ongoing_requests=2 * MOST_REQUESTS)
class Model:
    """One copy of the model in a process of its own."""

    def __init__(self):
        self.signature = json.loads((FOLDER / "signature.json").read_text())
        newest = max((one for one in FOLDER.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
        self.run = runtime.load(str(newest / self.signature["file"]))
        self.version = newest.name

    async def __call__(self, request: Request):
        """One request of HTTP."""
        try:
            inputs = self.arrays(await request.json())
        except ValueError as error:  # JSON that is none is one too
            return JSONResponse({"error": str(error)}, status_code=400)
        outputs = await self.predict(inputs)
        if isinstance(outputs, Exception):
            return JSONResponse({"error": str(outputs)}, status_code=400)
        named = zip(self.signature["outputs"], outputs, strict=True)
        return {"outputs": {spec["name"]: array.tolist() for spec, array in named}, "version": self.version}

    def arrays(self, body):
        """The inputs in the order of the signature; raises `WrongInputs` that names what does not fit."""
        given = body.get("inputs") if isinstance(body, dict) else None
        names = [spec["name"] for spec in self.signature["inputs"]]
        if not isinstance(given, dict) or sorted(given) != sorted(names):
            raise WrongInputs(f'expected {{"inputs": {{…}}}} with {", ".join(names)}')
        found = []
        for spec in self.signature["inputs"]:
            try:
                array = np.asarray(given[spec["name"]], dtype=spec["dtype"])
            except (ValueError, TypeError) as error:
                raise WrongInputs(f"{spec['name']}: {error}") from None
            wanted = spec["shape"]
            fits = len(wanted) == array.ndim and all(
                size in (None, there) for size, there in zip(wanted, array.shape, strict=True)
            )
            if not fits:
                raise WrongInputs(f"{spec['name']} has the shape {list(array.shape)} instead of {wanted}")
            found.append(array)
        return found

    @serve.batch(max_batch_size=MOST_REQUESTS, batch_wait_timeout_s=WAIT_SECONDS)
    async def predict(self, requests):
        """The outputs of each request; those of equal shapes but for the batch are computed together."""
        answers = [None] * len(requests)
        groups = {}
        for number, inputs in enumerate(requests):
            groups.setdefault(self.key(inputs), []).append(number)
        for key, numbers in groups.items():
            try:
                if key is None:
                    together = [(number, self.run(requests[number])) for number in numbers]
                else:
                    together = zip(numbers, self.together([requests[number] for number in numbers]), strict=True)
                for number, outputs in together:
                    answers[number] = outputs
            except Exception as error:
                for number in numbers:
                    answers[number] = error
        return answers

    def key(self, inputs):
        """Equal for requests that can be answered together; None for a model without a batch in all its inputs and outputs."""
        specs = [*self.signature["inputs"], *self.signature["outputs"]]
        if not all(spec["shape"] and spec["shape"][0] is None for spec in specs):
            return None
        return tuple(array.shape[1:] for array in inputs)

    def together(self, requests):
        """The outputs of each of these requests, computed as one batch."""
        outputs = self.run([np.concatenate(arrays) for arrays in zip(*requests, strict=True)])
        ends = np.cumsum([len(inputs[0]) for inputs in requests])[:-1]
        return list(zip(*(np.split(array, ends) for array in outputs), strict=True))


app = Model.bind()
