"""What `auto` takes if `dtrain bench` has measured strategies."""

from __future__ import annotations

from typing import Any

from dtrain.api.bench_choice import Measured, MeasuredStrategies, MeasuredStrategy, StrategyChoice
from dtrain.launch import registry


def test_auto_takes_what_bench_measured_to_be_the_best_and_not_what_only_changes_the_numbers() -> None:
    def one(name: str, speed: float, **changes: Any) -> MeasuredStrategy:
        facts: dict[str, Any] = {
            "spread": (speed, speed), "loss": 0.5, "samples": 640, "workers": 2, "memory_bytes": 100,
        } | changes  # fmt: skip
        options = facts.pop("options", {})
        return MeasuredStrategy(name, options, Measured(speed, **facts), "run", 0.0)

    auto: Any = registry.strategy("auto", {})
    rule: StrategyChoice = ("ddp", {}, "it fits")

    def learned(*found: MeasuredStrategy, outdated: tuple[str, ...] = ()) -> Any:
        return auto.learned(rule, MeasuredStrategies(found, outdated))

    assert learned(one("fsdp", 200), one("ddp", 100))[0] == "fsdp"
    assert "fsdp 200 samples/s; ddp 100 samples/s (the rule: ddp)" in learned(one("fsdp", 200), one("ddp", 100))[2]
    compressed = one("ddp", 101, options={"compression": "bf16"}, memory_bytes=110)
    assert learned(compressed, one("ddp", 100))[1] == {}
    assert learned(one("fsdp", 200, loss=2.0), one("ddp", 100))[0] == "ddp"
    assert learned(one("fsdp", 200, loss=2.0, samples=10), one("ddp", 100))[0] == "fsdp", "its loss says nothing"
    assert "only one strategy was measured" in learned(one("fsdp", 200))[2]
    assert "outdated: torch was 1 and is 2 now" in learned(outdated=("torch was 1 and is 2 now",))[2]
