#!/bin/sh
# Everything about the code that can be told without running it: generated code, style, types, layers.

set -eu
cd "$(dirname "$0")/.."

step() {
    printf '%s\n' "== $1"
    shift
    "$@"
}

step "generated code" tools/generate.sh --check
step "style" .venv/bin/ruff check
step "format" .venv/bin/ruff format --check
step "types" .venv/bin/mypy
step "layers" .venv/bin/lint-imports
