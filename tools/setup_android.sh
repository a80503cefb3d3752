#!/bin/sh
# The Debian packages that building the Android app takes, where they are missing; what comes from Maven Central, Maven
# fetches itself. Safe to run again: when nothing is missing it ends at once.

set -eu

say() { printf 'setup_android: %s\n' "$*"; }

# package:what it brings
NEEDED="aapt:aapt aapt:aapt2 apksigner:apksigner dexdump:dexdump enjarify:enjarify maven:mvn default-jdk-headless:javac"
FRAMEWORK=/usr/share/android-framework-res/framework-res.apk

missing=""
for pair in $NEEDED; do
    command -v "${pair#*:}" >/dev/null 2>&1 || missing="$missing ${pair%%:*}"
done
[ -f "$FRAMEWORK" ] || missing="$missing android-framework-res"
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -n "${missing% }" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then sudo=""; else sudo="sudo -n"; fi
say "installing $missing"
for attempt in 1 2; do
    # shellcheck disable=SC2086  # a list of words
    if command -v apt-get >/dev/null 2>&1 &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; then
        exit 0
    fi
    [ "$attempt" = 2 ] || $sudo apt-get update -qq >/dev/null 2>&1 || break
done
printf 'setup_android: error: these packages are missing: %s\n' "$missing" >&2
printf '  hint: on Debian or Ubuntu: sudo apt-get install %s\n' "$missing" >&2
exit 1
