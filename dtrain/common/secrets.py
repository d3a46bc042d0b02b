"""Keeping secrets out of what is printed."""

from __future__ import annotations

import re
from collections.abc import Mapping

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
HIDDEN = "***"
PRIVATE_KEYS = ("env", "storage.options", "notify")
"""Keys of a job whose values may hold secrets, whatever their names: they are shown and sent to nobody."""


def redacted(values: Mapping[str, str]) -> dict[str, str]:
    """The same mapping with the values of names that sound like secrets hidden."""
    return {name: HIDDEN if SECRET.search(name) and value else value for name, value in values.items()}
