"""Runs in a notebook, on the command line and in workers; imports `launch` and below. The weights of runs and files, outside of a training."""
