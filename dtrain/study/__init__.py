"""Runs where a study was started: many trials of one recipe, each a run of its own, of which the best is wanted."""
