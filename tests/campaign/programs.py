"""Training programs that nobody thought of, drawn anew each time: each is compared with the same training by hand, and with itself after
a kill, a stop or a resize.

`python tests/campaign/programs.py --programs 200 --seed 7`; a program that fails is made as plain as it can be, and printed as a file and
as the command that repeats it. `--fixed strategy=fsdp,form=task` fixes choices.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "oracle"))

import warm
from grammar import DIMENSIONS, Choices, drawn, parsed
from oracles import Invalid, Refused, differences
from shrink import shrunk
from trial import Trial

REPEAT = "python tests/campaign/programs.py --program"


class Campaign:
    """Programs that were tried, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.outcomes = Counter[str]()
        self.covered = Counter[tuple[str, str]]()
        self.failed: list[str] = []

    def judged(self, chosen: Choices) -> list[str]:
        """Run a program; its differences."""
        self._number += 1
        try:
            found = differences(Trial(chosen, self._folder / str(self._number)))
        except (Refused, Invalid) as error:
            self.outcomes[type(error).__name__.lower()] += 1
            print(f"{type(error).__name__.lower()}: {chosen}: {error}", flush=True)
            return []
        except Exception:  # noqa: BLE001  the campaign goes on
            found = [traceback.format_exc()[-3000:]]
        self.outcomes["different" if found else "equal"] += 1
        self.covered.update((name, chosen[name]) for name in DIMENSIONS)
        return found

    def tried(self, chosen: Choices, *, shrinks: bool) -> None:
        """Run a program; one that fails is made plainer and printed."""
        found = self.judged(chosen)
        print(f"{'FAILED' if found else 'equal'}: {chosen}", flush=True)
        if not found:
            return
        outcomes, covered = self.outcomes.copy(), self.covered.copy()
        plain = shrunk(chosen, lambda one: bool(self.judged(one))) if shrinks else chosen
        self.outcomes, self.covered = outcomes, covered
        self.failed.append(f"{REPEAT} '{plain}'")
        trial = Trial(plain, self._folder / "plainest")
        print((trial.folder / "program.py").read_text())
        print("\n".join(one[:2000] for one in found), f"\nrepeat it: {self.failed[-1]}", flush=True)


def main() -> int:
    """Run the programs; what became of them is printed, and 1 is returned if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--fixed", default="", help="choices, with commas between them")
    parser.add_argument("--program", help="only this one")
    given = parser.parse_args()
    fixed = dict(part.split("=", 1) for part in given.fixed.split(",") if part)
    warnings.simplefilter("ignore")
    end = warm.begun()
    import torch

    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="programs-") as place:
            campaign = Campaign(Path(place))
            programs = (drawn(random.Random(f"{given.seed}-{number}"), fixed) for number in range(given.programs))
            for chosen in [parsed(given.program)] if given.program is not None else programs:
                campaign.tried(chosen, shrinks=given.program is None)
    finally:
        end()
    never = [
        f"{name}={value}"
        for name, values in DIMENSIONS.items()
        for value in values
        if not campaign.covered[name, value]
    ]
    print(
        f"seed {given.seed}: {', '.join(f'{count} {what}' for what, count in campaign.outcomes.items())}; never drawn: {' '.join(never) or 'nothing'}"
    )
    print("\n".join(campaign.failed))
    return int(bool(campaign.failed))


if __name__ == "__main__":
    sys.exit(main())
