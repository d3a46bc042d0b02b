"""A real S3 endpoint on the loopback (moto's server), with one bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live import wait_for
from processes import free_ports

BUCKET = "bucket"


@dataclass
class S3:
    """A running endpoint; what it keeps is in its memory."""

    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def environment(self) -> dict[str, Any]:
        """What a child's environment needs to use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def url(self) -> str:
        """A folder in its bucket."""
        return f"s3://{BUCKET}/some runs"

    def freeze(self) -> None:
        """Nobody gets an answer any more, nor a refusal."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answers come again."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def endpoint(folder: Path) -> Iterator[S3]:
    """Start it, make the bucket, and end it afterwards."""
    (port,) = free_ports(1)
    with open(folder / "s3.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env=os.environ | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 24)},
            stdout=log,
            stderr=log,
        )
    s3 = S3(port, process)
    try:
        wait_for(lambda: _has_bucket(s3), "the S3 endpoint", 60)
        yield s3
    finally:
        s3.thaw()
        process.terminate()
        process.wait(20)


def _has_bucket(s3: S3) -> bool:
    assert s3.process.poll() is None, "the S3 endpoint ended"
    request = urllib.request.Request(f"http://127.0.0.1:{s3.port}/{BUCKET}", method="PUT")
    with suppress(OSError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()
        return True
    return False
