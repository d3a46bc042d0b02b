"""A curve that is kept thin has the extremes of the whole one, and forgets what was undone."""

from __future__ import annotations

import math

from dtrain.record.metric_curves import MOST_KEPT, ThinCurve


def test_a_thin_curve_of_many_points_keeps_first_last_and_extremes() -> None:
    curve = ThinCurve()
    for step in range(300_000):
        curve.add(step, 99.0 if step == 123_456 else -7.0 if step == 77 else math.nan if step == 5 else 1.0 + step % 3)
    assert len(curve) <= MOST_KEPT
    assert curve.best("max") == (123_456, 99.0)
    assert curve.best("min") == (77, -7.0)
    assert (curve.at[0], curve.at[-1], curve.last) == (0, 299_999, 1.0 + 299_999 % 3)
    curve.rewind(100_000)
    assert max(curve.values) == 3.0
    curve.add(50_000, 5.0)
    assert (curve.at[-1], curve.last) == (50_000, 5.0)
