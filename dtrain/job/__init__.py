"""Runs everywhere; imports `common`. What a run is: the typed job, the user's entrypoint, the classes of failures."""
