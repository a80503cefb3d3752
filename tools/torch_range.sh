#!/bin/sh
# Test the exporters with the oldest and the newest torch that pyproject.toml allows, each in an environment of its own
# under work/. A quarter of an hour and 12 GB: not part of every run.
#
#   TORCH_RANGE=2.13.0 tools/torch_range.sh   one release, or several with blanks between, in place of both ends

set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
TESTS="tests/integration/test_export_*.py tests/integration/test_zoo_models.py tests/integration/test_per_example.py
    tests/integration/test_bundle_trainer.py"

fail() { printf 'torch-range: error: %s\n  hint: %s\n' "$1" "$2" >&2; exit 1; }

bounds=$(sed -n 's/^export = .*"torch>=\([0-9.]*\),<\([0-9.]*\)".*/\1 \2/p' pyproject.toml)
[ -n "$bounds" ] || fail "pyproject.toml's extra export has no torch>=A,<B" "write it so, or change how this script reads it"
wanted=${TORCH_RANGE:-"${bounds% *}.0 <${bounds#* }"}

test_with() {
    name=work/torch-$(printf '%s' "$1" | sed 's/</before-/')
    case $1 in "<"*) torch="torch$1" ;; *) torch="torch==$1" ;; esac
    printf '== %s in %s\n' "$torch" "$name"
    if [ ! -x "$name/bin/python" ]; then
        free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
        [ "$free" -ge 8 ] || fail "$free GB are free, an environment with torch takes 6" "make room, or delete those in work/"
        "$PYTHON" -m venv "$name"
    fi
    # An environment of an earlier run gets what came out since.
    "$name/bin/python" -m pip install -q --upgrade "$torch" -e '.[all]' || return 1
    "$name/bin/python" -c 'import torch; print("torch", torch.__version__)' || return 1
    # shellcheck disable=SC2086  # a list of files
    "$name/bin/python" -m pytest -q $TESTS
}

# Both are run, whatever comes of the first.
failed=""
for torch in $wanted; do
    test_with "$torch" || failed="$failed $torch"
done
[ -z "$failed" ] || fail "not with torch$failed" "read what is said above; each environment is kept for another run"
printf 'torch-range: all passed: %s\n' "$wanted"
