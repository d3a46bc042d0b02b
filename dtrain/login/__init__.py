"""Runs where a person types; imports `show` and below. Types a command on another machine, over the system's own ssh and rsync."""
