"""A third party's tracker, installed by being on the PYTHONPATH. It writes JSON lines, and a file beside them says how it feels."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ElsewhereOptions:
    """Options beside `name: elsewhere` in a recipe."""

    file: str
    """Where the lines go; a file of the same name with .mood added: raise, hang, die or nothing."""


class Elsewhere:
    """Lines in a file."""

    Options = ElsewhereOptions

    def __init__(self, options):
        self.path = Path(options.file)
        self.mood = Path(f"{options.file}.mood")

    def obey(self):
        mood = self.mood.read_text() if self.mood.exists() else ""
        if mood == "raise":
            raise ConnectionError("nobody answers")
        if mood == "hang":
            time.sleep(10_000)
        if mood == "die":
            os._exit(7)

    def write(self, **line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def open(self, run):
        self.obey()
        self.write(opened=run.id)

    def log(self, entries):
        self.obey()
        for entry in entries:
            self.write(
                number=entry.number, step=entry.step, values=dict(entry.values), kind=entry.kind, text=entry.text
            )

    def close(self, ending):
        self.obey()
        self.write(closed=ending.exit_code if ending else None)
