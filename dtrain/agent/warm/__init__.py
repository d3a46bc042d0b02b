"""Runs on a node and where agents are started: agents that are started early, or kept after a run with the framework imported."""
