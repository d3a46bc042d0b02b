#!/bin/bash
#SBATCH --job-name=golden-1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@120
#SBATCH --export=ALL
#SBATCH --chdir=/
#SBATCH --open-mode=append
#SBATCH '--output=/shared/it'"'"'s 100%% mine/golden-1/logs/supervisor.log'
#SBATCH --requeue
trap '' USR1 TERM
exec PYTHON -P -m dtrain supervise '/shared/it'"'"'s 100% mine/golden-1'
