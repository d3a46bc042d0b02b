"""What a recipe hides when it is shown."""

from __future__ import annotations

import pytest

from dtrain.common.secrets import recipe_without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("name: x\nenv: {A: s, B: 's'}\nseed: 3\n", "name: x\nenv: {A: ***, B: ***}\nseed: 3\n"),
        ("env:\n  A: s  # s\n  # C: s\n  B: |\n    s\n    s\nseed: 3\n", "env:\n  A: ***\n  B: ***\nseed: 3\n"),
        ("notify:\n    command: s\n", "notify:\n    command: ***\n"),
        ("storage:\n  url: u\n  options: {key: s, client_kwargs: {endpoint_url: s}}\n", "storage:\n  url: u\n  options: {key: ***, client_kwargs: ***}\n"),
        ("base: &e {A: s}\nenv: *e\n", "base: {A: ***}\nenv: *e\n"),
        ("env:\nseed: 3\n", "env:***\nseed: 3\n"),
        ("storage: {url: 'https://me:s@host/x'}\n", "storage: {url: 'https://***@host/x'}\n"),
        ("name: x  # a comment\n", "name: x  # a comment\n"),
        ("env: {A: s\n", ""),
    ],
)  # fmt: skip
def test_values_of_private_keys_are_hidden_and_all_else_is_as_it_was(text: str, shown: str) -> None:
    assert recipe_without_secrets(text) == shown
