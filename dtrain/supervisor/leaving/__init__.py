"""Runs in the supervisor: requests to stop, the step that all ranks agree to leave at, and how an attempt or a run ends."""
