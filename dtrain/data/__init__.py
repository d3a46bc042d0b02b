"""Runs in workers and in `dtrain audit`; imports `spec` and `common`. Which samples a step trains on, and how a batch is made of them."""
