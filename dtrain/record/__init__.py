"""Runs on every machine that sees a run; imports `data`, `spec` and `common`. The run folder and everything that is read from it."""
