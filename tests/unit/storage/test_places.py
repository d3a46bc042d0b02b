"""The places at which the campaign holds supervisors up exist."""

from __future__ import annotations

import importlib
from operator import attrgetter

import pytest
from matrix import WHERE


@pytest.mark.parametrize("place", WHERE)
def test_a_place_of_a_supervisor_s_life_is_a_function(place: str) -> None:
    module, name = WHERE[place]
    assert callable(attrgetter(name)(importlib.import_module(module)))
