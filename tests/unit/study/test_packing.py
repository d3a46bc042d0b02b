"""Which studies can share an allocation."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.clusters.slurm.step import words_on
from dtrain.common.errors import UsageError
from dtrain.launch import recipe
from dtrain.study import packing


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "the cluster 'local' gives no allocation"),
        ("cluster: ray\n", "the cluster 'ray' gives no allocation"),
        ("cluster: slurm\nresources: {workers: 2, nodes: 2}\n", "these have 2 nodes"),
    ],
)
def test_what_cannot_be_packed_is_refused(more: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"script: a.py\ntune: {{packing: 2, sampler: random}}\n{more}")
    (tmp_path / "a.py").write_text("")
    with pytest.raises(UsageError, match=said):
        packing.check(recipe.from_document(*recipe.read(tmp_path / "r.yaml"), here=False))


def test_a_trial_has_the_processors_of_its_node_and_shares_them() -> None:
    words = words_on("n1", {"SLURM_CPUS_PER_TASK": "8"})
    assert {"--nodelist=n1", "--overlap", "--cpus-per-task=8"} <= set(words) and "--unset=SLURM_LABELIO" in words
    assert not any("cpus-per-task" in word for word in words_on("n1", {}))
