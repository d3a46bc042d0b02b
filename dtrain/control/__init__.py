"""Runs where a person or a program starts and watches runs; imports `supervisor` and below. Runs from outside: create, start, follow, state, stop, remove, ask."""
