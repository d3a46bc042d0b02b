"""Runs where a run is planned and where workers find their strategy; imports `api` and below. From a recipe to a launch plan."""
