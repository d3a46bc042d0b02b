"""Runs on the command line and in processes that it starts for one export; imports `worker` and below. Trained models for other runtimes."""
