"""Runs once a rank, forked from the zygote; imports `launch` and below. The training loop and the user's code in it."""
