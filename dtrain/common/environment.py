"""Every environment variable of dtrain."""

from __future__ import annotations

RUNS = "DTRAIN_RUNS"
"""Read by the command line: the folder of runs, if `--runs` is not given."""
RUN = "DTRAIN_RUN"
"""Set for workers: the run's id."""
ATTEMPT = "DTRAIN_ATTEMPT"
"""Set for workers: the number of the attempt, from 1."""
RANK = "DTRAIN_RANK"
"""Set for workers: the rank, under every strategy."""
ADDRESS = "DTRAIN_ADDRESS"
"""Set by clusters for agents: the address of the node, if the cluster knows better than the host name."""
CPUS = "DTRAIN_CPUS"
"""Set by clusters for agents: the processors of the node that the run may use."""
LINE_BYTES = "DTRAIN_LINE_BYTES"
"""Set by clusters for agents: the longest line that arrives whole at the supervisor, if there is a limit."""
FOLDER = "DTRAIN_FOLDER"
"""Set by clusters for agents: the recipe's folder on this node, if the cluster shipped it."""
SHIPPED = "DTRAIN_SHIPPED"
"""Set by clusters for a submitted supervisor: the name of a module with what was sent along (`dtrain.api.plan.SHIPPED_JOB`)."""
OF_AGENTS = frozenset({ADDRESS, CPUS, LINE_BYTES, FOLDER, SHIPPED})
"""Not passed on to workers."""
