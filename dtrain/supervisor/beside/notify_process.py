"""Sends one notification of a run: `python -m dtrain.supervisor.beside.notify_process`, with the request in JSON on stdin.

It is a process of its own, so that a receiver that is slow or down delays nothing: after a few tries it gives up. Failures are in
`logs/notify.log`, which is its stderr.
"""

from __future__ import annotations

import json
import os
import smtplib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from email.message import EmailMessage

from dtrain.common.serde import JsonObject

TIMEOUT_SECONDS = 20.0
COMMAND_SECONDS = 300.0
TRIES = 3
PAUSE_SECONDS = 2.0
PREFIX = "DTRAIN_NOTICE_"
Tell = Callable[[JsonObject, JsonObject, str], None]
"""Called with the notice, `notify` of the recipe, and the recipe's folder."""


def main() -> int:
    """0 if all who were to be told were."""
    request: JsonObject = json.load(sys.stdin)
    wanted = request["wanted"]
    ways: dict[str, Tell] = {"command": _run, "webhook": _post, "mail": _mail}
    told = [_told(name, tell, **request) for name, tell in ways.items() if wanted.get(name)]
    return int(not all(told))


def _told(name: str, tell: Tell, notice: JsonObject, wanted: JsonObject, folder: str) -> bool:
    for number in range(1, TRIES + 1):
        try:
            tell(notice, wanted, folder)
        except (OSError, ValueError, subprocess.SubprocessError, smtplib.SMTPException) as error:
            again = "trying again" if number < TRIES else "given up"
            print(f"notify.{name}, {notice['event']}: {error} ({again})", file=sys.stderr, flush=True)
            time.sleep(PAUSE_SECONDS * (number < TRIES))
        else:
            return True
    return False


def _run(notice: JsonObject, wanted: JsonObject, folder: str) -> None:
    """A shell command in the recipe's folder: the text on its stdin, the rest in its environment."""
    told = {f"{PREFIX}{name.upper()}": str(value) for name, value in notice.items() if value is not None}
    subprocess.run(
        ["sh", "-c", wanted["command"]], input=notice["text"], text=True, cwd=folder, env=os.environ | told, check=True,
        timeout=COMMAND_SECONDS, stdout=sys.stderr,
    )  # fmt: skip


def _post(notice: JsonObject, wanted: JsonObject, _folder: str) -> None:
    """JSON, of which chat services show `text`."""
    url = os.path.expandvars(wanted["webhook"])
    request = urllib.request.Request(
        url, json.dumps(notice).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
        pass


def _mail(notice: JsonObject, wanted: JsonObject, _folder: str) -> None:
    message = EmailMessage()
    message["Subject"] = notice["text"].splitlines()[0]
    message["To"] = wanted["mail"]
    message["From"] = wanted["sender"] or wanted["mail"].split(",")[0]
    message.set_content(notice["text"])
    host, _, port = wanted["smtp"].partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=TIMEOUT_SECONDS) as server:
        server.send_message(message)


if __name__ == "__main__":
    sys.exit(main())
