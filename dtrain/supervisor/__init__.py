"""Runs once a run, on the launching machine or in the batch job; imports `agent` and below. Asks for nodes, starts attempts, watches, decides."""
