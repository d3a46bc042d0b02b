"""Trackers: a file for each place where a run's curves are drawn. Runs in a process of the supervisor's machine; see README.md."""
