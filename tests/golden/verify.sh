#!/bin/sh
# Compares exported models with what they compute in PyTorch's programs, in an environment that is
# made at the first call (some 5 GB; VERIFY names another place for it, or one that is there).
#
#     otter-jax export --workdir runs/first --out exported --eval unseen
#     sh tests/golden/verify.sh exported
set -eu
here=$(dirname "$0")
VERIFY=${VERIFY:-/tmp/otter-jax-verify}
if [ ! -x "$VERIFY/bin/python" ]; then
    python3 -m venv "$VERIFY"
    "$VERIFY/bin/pip" install --quiet -r "$here/requirements.txt"
fi
exec "$VERIFY/bin/python" "$here/verify_export.py" "$@"
