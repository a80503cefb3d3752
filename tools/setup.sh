#!/bin/sh
# Make .venv ready for work, touching nothing else of the machine but missing Debian packages, and those only
# where it may. Safe to run again: when nothing has changed it ends at once.
#
#   EXTRAS=coordinator,dev tools/setup.sh    install these extras instead of all
#   PYTHON=/path/to/python3 tools/setup.sh   use this interpreter

set -eu
cd "$(dirname "$0")/.."
EXTRAS=${EXTRAS:-all}
STAMP=.venv/edge-setup.stamp

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$1" >&2; printf '  hint: %s\n' "$2" >&2; exit 1; }

# What the environment depends on: when this is the same, so is the environment.
fingerprint() { { cat pyproject.toml tools/setup.sh; printf '%s\n' "$EXTRAS" "$PWD"; } | cksum; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then command -v "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer was found" "install it, or name it: PYTHON=/path/to/python3 make setup"
}

# Install Debian packages if this user may; the caller says what it means when that fails.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" -eq 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else return 1; fi
    say "installing $* with apt-get"
    for attempt in 1 2; do
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
            >/dev/null 2>&1 && return 0
        [ "$attempt" = 2 ] || $sudo apt-get update -qq >/dev/null 2>&1 || return 1
    done
    return 1
}

make_venv() {
    python=$(find_python)
    # Debian ships Python without these two; the package is named after the version.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        apt_install "$package" || fail "$python cannot make virtual environments" \
            "install the package $package (Debian, Ubuntu: sudo apt-get install $package), then run make setup again"
    fi
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv || fail "$python could not make .venv" "see its message above"
}

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; then
    exit 0
fi

.venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv

say "installing edge-sdk[$EXTRAS] into .venv (the first time this takes some minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$EXTRAS]" ||
    fail "pip could not install edge-sdk[$EXTRAS]" "see its message above; a proxy or mirror is set with pip's own settings"

# The demo starts mosquitto where it is installed, and the slower broker inside edge-sdk otherwise.
if ! PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null 2>&1; then
    apt_install mosquitto || say "mosquitto is not installed: the built-in broker (amqtt) is used instead"
fi

# The Kotlin client is built and tested with everything else, but who wants only a part of the Python does not need it.
if [ "$EXTRAS" = all ] && ! { command -v mvn && command -v javac; } >/dev/null 2>&1; then
    apt_install maven default-jdk-headless ||
        say "Maven and a JDK are not installed: android_demo cannot be built, and make test will say so"
fi

fingerprint >"$STAMP"
say "done: .venv/bin/edge --help"
