#!/usr/bin/env bash
# N processes by Open MPI, one per GPU:
#   bash launch/mpirun.sh N .venv/bin/python -m otter_jax train --config C --workdir DIR
# Machines: OMPI_MCA_orte_default_hostfile=FILE, with a line "HOST slots=GPUS" for each.
set -euo pipefail
source "$(dirname "$0")/env.sh"

n="${1:?the number of processes}"
shift

# After a SIGTERM or Ctrl-C mpirun kills its processes within two seconds. SIGUSR1 it passes on to
# them and does no more, so the signal travels as that. This runs a command, in a session of its own,
# where nothing else signals it; any of the signals $1 reaches it as $2.
relay='
  from=$1 to=$2
  shift 2
  setsid "$@" &
  trap "kill -$to $!" $from
  while status=0; wait $! || status=$?; kill -0 $! 2>/dev/null; do :; done
  exit $status'

# Unbound: a process decodes images on many cores, and mpirun may give it one.
exec bash -c "$relay" relay "TERM INT HUP" USR1 \
  mpirun -n "$n" --bind-to none -x XLA_PYTHON_CLIENT_MEM_FRACTION -x XLA_FLAGS -x NCCL_DEBUG \
  bash -c "$relay" relay "TERM USR1" TERM "$@"
