#!/bin/sh
# Test LiteRT and ExecuTorch bundles, in work/formats, with the torch that their converters allow. Then let LiteRT alone
# train one, in work/litert, which has no torch. Half an hour and gigabytes: not part of every run.
#
#   FORMATS_PYTHON=/path/to/python tools/formats.sh   use an environment that has the runtimes, pytest and hypothesis

set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=python3

make_environment() {
    [ -x "$1/bin/python" ] || "$PYTHON" -m venv "$1"
    "$1/bin/python" -m pip install -q -e "$2"
}

if [ -z "${FORMATS_PYTHON:-}" ]; then
    make_environment work/formats '.[export-litert,executorch,coordinator,dev]'
    FORMATS_PYTHON=work/formats/bin/python
fi
"$FORMATS_PYTHON" -c '
from importlib.metadata import version
print("== " + ", ".join(f"{name} {version(name)}" for name in ("torch", "litert-torch", "ai-edge-litert", "executorch")))
'
# A plugin that comes with the converters uses what pytest deprecates.
"$FORMATS_PYTHON" -m pytest -p no:anyio --durations=10 tests/formats

printf '%s\n' "== LiteRT without torch, in work/litert"
make_environment work/litert '.[litert]'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$FORMATS_PYTHON" -m edge_sdk.cli signer init --out "$folder/signer"
"$FORMATS_PYTHON" -m edge_sdk.cli export --format litert --signer "$folder/signer/signer.key" --out "$folder/digits.edge"
if work/litert/bin/python -c 'import torch' 2>/dev/null; then
    echo "error: work/litert has torch, so it shows nothing"
    exit 1
fi
work/litert/bin/edge verify --runtime litert --signer "$folder/signer/signer.pub" "$folder/digits.edge"
work/litert/bin/edge bench --runtime litert --signer "$folder/signer/signer.pub" "$folder/digits.edge"
