#!/usr/bin/env bash
# N processes on this machine, one per GPU where there are GPUs:
#   bash launch/local.sh N .venv/bin/python -m otter_jax train --config C --workdir DIR
# SIGTERM, Ctrl-C and a hangup become a SIGTERM to each process. The exit status is that of the first
# one that fails; the others then have GRACE=30 seconds to end, too, before they are killed.
set -euo pipefail
source "$(dirname "$0")/env.sh"
set -m # process groups of their own: Ctrl-C reaches the processes once, from here

n="${1:?the number of processes}"
shift
# Above the ports that systems give to clients.
until port=$((RANDOM % 4096 + 61440)) && ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done

declare -A running=()
trap 'kill -TERM "${!running[@]}" 2>/dev/null || true' TERM INT HUP
for ((i = 0; i < n; i++)); do
  # Not CUDA_VISIBLE_DEVICES: that may be yours, and these numbers count within it. JAX reads them
  # where it does the same under SLURM and Open MPI; without GPUs they have no effect.
  JAX_LOCAL_DEVICE_IDS=$i "$@" \
    --coordinator="127.0.0.1:$port" --num_processes="$n" --process_id="$i" &
  running[$!]=$i
done

code=0
while ((${#running[@]})); do
  wait -n -p ended "${!running[@]}" || code=$?
  if [ -z "${ended:-}" ] && ((code > 128)); then code=0 && continue; fi # a signal was passed on
  unset "running[${ended:-none}]"
  if ((code)); then break; fi
done

for ((second = 0; second < ${GRACE:-30}; second++)); do
  kill -0 "${!running[@]}" 2>/dev/null || break
  sleep 1
done
kill -KILL "${!running[@]}" 2>/dev/null || true
exit "$code"
