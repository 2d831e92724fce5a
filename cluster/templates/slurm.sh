#!/bin/bash
# The experiment '@@{name}' (@@{trials}) under Slurm: Ray on every node of one allocation, the experiment's command on the first.
#
#   sbatch @@{output}        from the folder, on a shared file system, in which ledger, checkpoints and the MLflow store are to lie
#
# What to look at: partition, account and time; how the environment is found (source ...). When the time is nearly over the trials
# write their checkpoints, the job is put into the queue again and goes on. Of one experiment one job at a time in a folder: a job that was
# queued again takes the newest launch that was asked for in these words.
# The numbers follow from scaling (@@{needs}) and @@{concurrency}.

#SBATCH --job-name=@@{slug}
#SBATCH --nodes=@@{slurm_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@@{slurm_cpus}
@@{slurm_gpus}
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
##SBATCH --partition=PARTITION
##SBATCH --account=ACCOUNT

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# source /path/to/environment/bin/activate

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${hosts[0]}"
# where a host's own name is a loopback address to it (Debian: 127.0.1.1), the next one; on one node loopback will do
ip="$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ { print $1; exit }')"
address="${ip:-127.0.0.1}:$((20000 + SLURM_JOB_ID % 10000))"

mkdir -p .orchestrator
state="$PWD/.orchestrator/slurm-$SLURM_JOB_ID"  # the driver's process id
# authentication stays on, with a token in a file that only you can read
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.orchestrator/slurm-token"
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
fi
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds for all nodes to come: the first import from a shared file system is slow

# ray symmetric-run starts Ray on every node, waits for all of them, and runs what follows -- on the first; Ray ends with it
# shellcheck disable=SC2016  # the words in single quotes are for the shell on the first node
driver='echo $$ > "$1"; shift
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then exec "$@" --resume if-any; fi
exec "$@"'
# srun doesn't take over --cpus-per-task from sbatch (Slurm 22.05 and later)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK"@@{ray_gpus} --disable-usage-stats -- \
    bash -c "$driver" driver "$state" orchestrator @@{command} @@{file}@@{arguments} --address "$address" &
step=$!

# the time is nearly over: only the driver is asked to end, and it asks its workers
trap 'if [ -s "$state" ]; then srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" kill -TERM "$(cat "$state")" || true; fi' TERM

code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do  # a signal ends `wait`, not the step
    code=0
    wait "$step" || code=$?
done
if [ "$code" -eq 143 ]; then  # it ended while the driver was asked to
    code=0
    wait "$step" || code=$?
fi
rm -f "$state"
if [ "$code" -eq 130 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then  # interrupted, resumable; a full disk is no matter of time
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
