"""Runs in the supervisor, beside its loop: trackers, notifications, inspections, the debugger, and logs of nodes."""
