"""The scale of the loss in fp16: its state, what it refuses, and what people read of a step that is left out."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from dtrain.common.errors import UserError
from dtrain.record.events import RESCALE, BadStep
from dtrain.record.status import RunState
from dtrain.show import render
from dtrain.strategies.torch.train.loss_scale import LossScale


def stepped(scale: LossScale, gradient: float) -> float:
    """What is blamed on the scale in a step with this gradient, scaled."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    without = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scale.times(torch.zeros(()))
    parameter.grad = torch.full((2,), gradient)
    scale.unscale([optimizer, without])
    blamed: float = scale.blamed()
    scale.update()
    return blamed


def test_the_scale_is_blamed_for_what_is_not_finite_and_goes_on_from_its_state() -> None:
    scale = LossScale(torch.device("cpu"))
    assert [stepped(scale, float("inf")), stepped(scale, float("nan")), stepped(scale, 1.0)] == [65536.0, 32768.0, 1.0]
    scale.count_in(torch.tensor(150.0, dtype=torch.float64))
    scale.count_in(torch.tensor(0.0, dtype=torch.float64))
    assert float(scale.unit) == 256.0, "a step without tokens changes nothing"
    other = LossScale(torch.device("cpu"))
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()
    for one in (scale, other):
        assert [stepped(one, 1.0) for _ in range(1999)] == [1.0] * 1999
        assert stepped(one, float("inf")) == 32768.0, "16384 was doubled after 2000 steps"


def test_parameters_in_fp16_are_refused_in_one_sentence() -> None:
    scale = LossScale(torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(UserError, match="parameters in fp16, whose gradients cannot be scaled: keep them in fp32"):
        scale.unscale([torch.optim.SGD([parameter], lr=1.0)])


def test_a_step_that_is_left_out_for_its_scale_is_no_warning() -> None:
    event = BadStep(step=3, why="the gradient of the loss times 65536 overflowed in fp16", answer=RESCALE)
    told = (
        "step 3: the gradient of the loss times 65536 overflowed in fp16; it is left out, and the loss is scaled less"
    )
    assert render.line(event, RunState()) == told
