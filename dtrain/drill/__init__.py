"""Runs where a person types, and inside the runs that it disturbs; imports `bench` and below. Faults, their injection, and the checks of what dtrain promises."""
