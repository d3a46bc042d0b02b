"""Runs in the supervisor: commits checkpoints, decides which stay, and finds the one that an attempt starts from."""
