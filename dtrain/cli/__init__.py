"""Runs where a person types; imports everything below. The commands and what they print."""
