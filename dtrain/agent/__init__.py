"""Runs once a node; imports `worker` and below, and neither pydantic nor numpy at start. Starts, watches and stops the node's workers."""
