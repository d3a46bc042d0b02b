"""The contract of clusters, on those that need no lab; SLURM and Ray are held to it in tests/clusters."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.api import testing
from dtrain.launch import registry

CLUSTERS = ["local"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_rendering_is_pure_and_names_every_node(name: str, tmp_path: Path) -> None:
    testing.check_rendering(registry.cluster(name, {}), testing.plan_for(name), tmp_path)


@pytest.mark.parametrize("name", CLUSTERS)
def test_agents_answer_and_end_with_the_allocation(name: str, tmp_path: Path) -> None:
    testing.check_agents(registry.cluster(name, {}), testing.plan_for(name), tmp_path)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_lost_agent_is_reported_and_can_be_replaced(name: str, tmp_path: Path) -> None:
    testing.check_lost_agent(registry.cluster(name, {}), testing.plan_for(name), tmp_path)
