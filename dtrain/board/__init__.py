"""Runs where `dtrain board` was typed: a page of all runs on the loopback, which a browser keeps up to date; imports `study` and below."""
