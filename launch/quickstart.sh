#!/usr/bin/env bash
# From a fresh clone to zero-shot numbers: installs, then trains the quickstart.
# bash launch/quickstart.sh [infonce|ls|kd|otter|siglip|softclip|trust|trust_otter]
set -euo pipefail
cd "$(dirname "$0")/.."

method="${1:-infonce}"
bash launch/install.sh
exec .venv/bin/python -m otter_jax train \
  --config "quickstart:$method" --workdir "runs/quickstart_$method"
