"""What a submitted run brings to a cluster that sees none of its files: the job, and variables of its environment.

Ray shows the runtime environment of a job to everyone who may look at the cluster; a Python module that is sent along
(`py_modules`) it only stores. So secrets travel in a module.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dtrain.api.plan import SHIPPED_ENVIRONMENT, SHIPPED_JOB
from dtrain.common.serde import to_dict
from dtrain.job.job import Job


@contextmanager
def module(job: Job | None, environment: Mapping[str, str]) -> Iterator[Path]:
    """The folder of a module that holds them, for as long as it takes to send it."""
    with tempfile.TemporaryDirectory(prefix="dtrain-") as above:
        folder = Path(above) / f"dtrain_shipped_{os.urandom(4).hex()}"
        folder.mkdir()
        (folder / "__init__.py").touch()
        if job is not None:
            (folder / SHIPPED_JOB).write_text(json.dumps(to_dict(job)))
        (folder / SHIPPED_ENVIRONMENT).write_text(json.dumps(dict(environment)))
        yield folder
