"""Runs wherever a run is kept on remote storage; imports `run` and below. The object store, the supervisor's lease there, and the copy of a run."""
