"""Ray: one actor a node in a placement group; submission through the Jobs API."""
