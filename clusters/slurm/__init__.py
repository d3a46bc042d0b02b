"""SLURM: a batch script, one srun for all agents, requeue and node exclusion."""
