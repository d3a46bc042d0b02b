"""Runs everywhere; may import nothing of dtrain. Errors, serialization, files, processes: what every other package builds on."""
