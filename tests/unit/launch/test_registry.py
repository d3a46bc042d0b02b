"""Plugins are found by name, and what cannot be one is refused in one sentence."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from dtrain.common.errors import UsageError
from dtrain.launch import registry


class Loose:
    """A strategy that inherits nothing."""


@pytest.mark.parametrize("kind", list(registry.BASES))
def test_a_plugin_that_is_not_derived_from_its_base_is_refused(
    kind: registry.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("loose", f"{__name__}:Loose", registry.GROUPS[kind])
    monkeypatch.setattr(registry, "installed", lambda kind: {"loose": point})
    base = registry.BASES[kind]
    with pytest.raises(UsageError, match=rf"the {kind} 'loose' \(.*:Loose\) is not derived from {base.__module__}"):
        registry.plugin_class.__wrapped__(kind, "loose")
