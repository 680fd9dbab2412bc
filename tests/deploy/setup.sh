#!/usr/bin/env bash
# Install what `make deploy-check` needs beside .venv: Debian's packages, as root where there is apt-get, and tools from
# PyPI into $1. What cannot be had is left out; the tests that need it skip, and say so.
set -euo pipefail
target=$1
python=$2
here=$(cd "$(dirname "$0")" && pwd)

packages=(prometheus nginx-light buildah mmdebstrap)
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  missing=()
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    # No package may start a service of its own here: the tests start what they need.
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
  fi
else
  echo "not root, or no apt-get: ${packages[*]} are taken if they are there" >&2
fi

"$python" -m venv "$target"
"$target/bin/python" -m pip --disable-pip-version-check install --quiet -r "$here/requirements.txt"
