"""How the workers of an attempt left: by themselves, because they were asked to, or early by the user's own wish."""

from __future__ import annotations


class Departure:
    """What the workers said and did at their end."""

    def __init__(self) -> None:
        self.left_step: int | None = None
        """The agreed step at which they saved and left."""
        self.stopped = ""
        """Why the user's function asked for the end."""
        self.ended_early = ""
        """Why the recipe had the run end before its last step."""
        self.ended_well = 0
        """Workers that exited with code 0."""

    def early(self) -> str:
        """Why the run is done before its last step; '' if it is not."""
        step = "" if self.left_step is None else f" at step {self.left_step}"
        return f"stopped by the function{step}: {self.stopped}" if self.stopped else self.ended_early

    def finished_first(self, workers: int, *, script: bool) -> bool:
        """Whether all workers ended well by themselves before they were told a step to leave at."""
        return self.ended_well == workers and self.left_step is None and not script
