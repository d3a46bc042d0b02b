"""Runs in the agent: in-memory checkpoints of a node, kept after the workers' end and copied to other nodes."""
