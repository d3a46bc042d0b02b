"""Runs where a person types; imports `inspect` and below. Repeats steps of a run and compares the results to the last bit."""
