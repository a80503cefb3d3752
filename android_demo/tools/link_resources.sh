#!/bin/sh
# Compile and link an app's resources: target/base.apk (manifest and resources) and target/r (R.java). Maven calls it.
#
#   tools/link_resources.sh app MIN_SDK TARGET_SDK

set -eu
cd "$1"
# Debian's; its resource attributes end at API 29.
FRAMEWORK=/usr/share/android-framework-res/framework-res.apk

if ! command -v aapt2 >/dev/null 2>&1 || [ ! -f "$FRAMEWORK" ]; then
    echo "link_resources: error: aapt2 and $FRAMEWORK are needed" >&2
    echo "  hint: tools/setup_android.sh installs them where it may; on Debian: sudo apt-get install aapt android-framework-res" >&2
    exit 1
fi

mkdir -p target
rm -rf target/r
aapt2 compile --dir src/main/res -o target/resources.zip
aapt2 link -I "$FRAMEWORK" --manifest src/main/AndroidManifest.xml --min-sdk-version "$2" --target-sdk-version "$3" \
    --java target/r -o target/base.apk target/resources.zip
