#!/bin/sh
# Build the Kotlin modules of android_demo and run their tests with Maven.
#
#   tools/test_kotlin.sh -pl edge-client    with more arguments for Maven

set -eu
cd "$(dirname "$0")/.."

if ! command -v mvn >/dev/null 2>&1 || ! command -v javac >/dev/null 2>&1; then
    echo "test_kotlin: error: Maven and a JDK (17 or newer) are needed" >&2
    echo "  hint: make setup installs them where it may; on Debian: sudo apt-get install maven default-jdk-headless" >&2
    exit 1
fi

# Of an earlier run nothing may be counted, and no class may stay whose source is gone.
rm -rf android_demo/*/target/surefire-reports android_demo/*/target/classes android_demo/*/target/test-classes
mvn --quiet --batch-mode -f android_demo/pom.xml "$@" test

# Maven is quiet where all is well; say what it ran.
cat android_demo/*/target/surefire-reports/TEST-*.xml | sed -n 's/.*<testsuite [^>]* tests="\([0-9]*\)".*errors="\([0-9]*\)".*skipped="\([0-9]*\)".*failures="\([0-9]*\)".*/\1 \2 \3 \4/p' |
    awk '{ tests += $1; bad += $2 + $4; skipped += $3 }
         END { printf "Kotlin: %d tests run, %d failed, %d skipped\n", tests, bad, skipped; exit (tests == 0 || bad > 0) }'
