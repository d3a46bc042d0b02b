#!/bin/bash
#SBATCH --job-name=golden-1
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=24
#SBATCH --gpus-per-node=4
#SBATCH --mem=64G
#SBATCH --partition=gpu
#SBATCH --account=physics
#SBATCH --qos=high
#SBATCH --time=2-12:30:00
#SBATCH '--constraint=a100&nvlink'
#SBATCH '--exclude=node[7-9]'
#SBATCH --reservation=friday
#SBATCH --signal=B:USR1@300
#SBATCH --export=ALL
#SBATCH --chdir=/
#SBATCH --open-mode=append
#SBATCH '--output=/shared/it'"'"'s 100%% mine/golden-1/logs/supervisor.log'
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --mail-type=END
#SBATCH '--comment=it'"'"'s $HOME; a \\ and a #'
trap '' USR1 TERM
module load cuda/12
export NCCL_DEBUG=WARN
exec PYTHON -P -m dtrain supervise '/shared/it'"'"'s 100% mine/golden-1'
