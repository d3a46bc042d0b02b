"""Runs in workers and in the supervisor; imports `storage` and below. Checkpoints: staged, committed, verified, kept in a folder or at a URL."""
