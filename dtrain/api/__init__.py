"""Runs everywhere; imports `run` and below. What plugins implement and import: strategies, clusters, the launch plan, the messages."""
