#!/usr/bin/env bash
# From a fresh clone to passed tests: installs, checks the style, runs pytest on both cores.
set -euo pipefail
cd "$(dirname "$0")/.."

bash launch/install.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# By files: what the tests of a file share is made once, not once per core.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
