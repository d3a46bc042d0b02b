"""Runs in the supervisor: the nodes of a run, their checks, their replacement, and how their workers find each other."""
