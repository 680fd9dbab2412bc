#!/usr/bin/env bash
# perf_analyzer into FOLDER: its wheel needs a newer C library than many machines have, so it gets a Debian of its own.
# Needs root and apt-get; without them it says so, and the tests of perf_analyzer are skipped.
set -euo pipefail
folder=$1
python=$2
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "perf_analyzer: needs root and apt-get to set up; its tests will be skipped"
    exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
    apt-get update -qq && apt-get install -qq -y --no-install-recommends mmdebstrap >/dev/null
fi
rm -rf "$folder"
mkdir -p "$folder/wheel"
mmdebstrap --quiet --variant=minbase trixie "$folder/root"
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --platform manylinux_2_38_x86_64 \
    --only-binary=:all: -d "$folder/wheel" perf-analyzer==2.60.0
"$python" -m zipfile -e "$folder"/wheel/*.whl "$folder/wheel"
binary=$(find "$folder/wheel" -name perf_analyzer -type f | head -n 1)
install -m 755 "$binary" "$folder/root/usr/bin/perf_analyzer"
