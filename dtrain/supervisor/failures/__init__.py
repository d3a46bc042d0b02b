"""Runs in the supervisor: which failure is the cause, what class it has, and what follows from it."""
