"""Runs where a person types; imports `export` and below. Compares strategies and numbers of workers by short runs."""
