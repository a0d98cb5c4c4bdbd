#!/usr/bin/env bash
# Installs what tests/test_launch.py starts: SLURM and Open MPI, from Debian's or Ubuntu's packages.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"
if type munged slurmctld slurmd srun mpirun &>/dev/null; then exit 0; fi

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }
apt update
apt install --yes --no-install-recommends slurm-wlm munge openmpi-bin >/dev/null
