"""How faults are typed, and what a schedule becomes in the environment of a drill's run."""

from __future__ import annotations

import pytest

from dtrain.common.errors import UsageError
from dtrain.drill.fault import PHASES, TYPES, Fault, Wanted, decode, encode, named, parsed


def test_a_fault_is_typed_as_it_is_printed() -> None:
    schedule = (
        Fault("kill", 1, "step", 23),
        Fault("hang", 0, "evaluation"),
        Fault("stop", 2, "collective", 7),
        Fault("segv", 1, seconds=2.5),
    )
    text = named(schedule)
    assert text == "kill@23:1+hang@evaluation:0+stop@collective-7:2+segv@2.5s:1"
    assert parsed(text) == (
        Wanted("kill", "step", 23, 1), Wanted("hang", "evaluation", None, 0), Wanted("stop", "collective", 7, 2),
        Wanted("segv", rank=1, seconds=2.5),
    )  # fmt: skip
    assert decode(encode(schedule)) == schedule
    assert parsed("kill@first-step") == (Wanted("kill", "first-step"),)
    assert Fault("supervisor", 0, "commit", 8).text == "supervisor@commit-8"
    assert parsed("supervisor@8") == parsed("supervisor@commit-8")


def test_every_printed_usual_place_can_be_typed_again() -> None:
    for name, kind in TYPES.items():
        for phase in kind.phases:
            assert phase in PHASES
            fault = Fault(name, 1, phase, 5)
            (wanted,) = parsed(fault.text)
            assert (wanted.name, wanted.phase, wanted.step) == (name, phase, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kil", "Did you mean 'kill'?"),
        ("kill@nowhere", "kill cannot strike at 'nowhere'"),
        ("nan@evaluation", "It strikes at a step."),
        ("supervisor@evaluation", "It strikes at commit, renamed."),
        ("network-cut@evaluation", "It strikes at a step, or at first-step, collective."),
        ("kill:x", "NAME@PHASE:RANK"),
    ],
)
def test_a_mistake_is_answered_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(text)
    assert said in str(error.value)
