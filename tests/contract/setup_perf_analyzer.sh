#!/usr/bin/env bash
# perf_analyzer into FOLDER: its wheel needs a newer C library than many machines have, so it gets a Debian of its own.
# Needs root, and Debian's packages; where it cannot be had this says so, and the tests of perf_analyzer are skipped.
set -euo pipefail
folder=$1
python=$2

set_up() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "it needs root and apt-get"; return 1; }
    if ! command -v mmdebstrap >/dev/null; then
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends mmdebstrap >/dev/null; } || return 1
    fi
    rm -rf "$folder" && mkdir -p "$folder/wheel" || return 1
    mmdebstrap --quiet --variant=minbase trixie "$folder/debian" || return 1
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --platform manylinux_2_38_x86_64 \
        --only-binary=:all: -d "$folder/wheel" perf-analyzer==2.60.0 || return 1
    "$python" -m zipfile -e "$folder"/wheel/*.whl "$folder/wheel" || return 1
    install -m 755 "$(find "$folder/wheel" -name perf_analyzer -type f | head -n 1)" "$folder/debian/perf_analyzer"
}

set_up || echo "perf_analyzer: not set up; its tests will be skipped"
