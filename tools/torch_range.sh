#!/bin/sh
# Test the exporters with the oldest and the newest torch that pyproject.toml allows, each in an environment of its own
# under work/. Minutes and gigabytes: not part of every run.

set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

bounds=$(sed -n 's/.*"torch>=\([0-9.]*\),<\([0-9]*\)\.\([0-9]*\)".*/\1 \2 \3/p' pyproject.toml)
# shellcheck disable=SC2086  # three words
set -- $bounds
oldest=$1.0
newest="<$2.$3"

for wanted in "==$oldest" "$newest"; do
    name=work/torch-$(printf '%s' "$wanted" | tr -cd '0-9.')
    printf '%s\n' "== torch $wanted in $name"
    [ -x "$name/bin/python" ] || "$PYTHON" -m venv "$name"
    "$name/bin/python" -m pip install -q "torch$wanted" -e '.[all]'
    "$name/bin/python" -c 'import torch; print("torch", torch.__version__)'
    "$name/bin/python" -m pytest -q tests/integration/test_export_*.py tests/integration/test_bundle_trainer.py
done
