#!/usr/bin/env bash
# Install what `make deploy-check` needs beside .venv: Debian's packages, as root where there is apt-get, and tools from
# PyPI into $1. What cannot be had is left out; the tests that need it skip, and say so.
set -euo pipefail
target=$1
python=$2
here=$(cd "$(dirname "$0")" && pwd)

packages=(prometheus nginx-light buildah mmdebstrap iproute2)
command -v npm > /dev/null || packages+=(npm)
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
# Only what they say of types is read, so nothing that they need comes along.
"$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps kserve==0.21.0 kubernetes==35.0.0

mkdir -p "$target/crds"
cp "$here/crds/package.json" "$target/crds/"
if command -v npm > /dev/null; then
  npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts --prefix "$target/crds"
else
  echo "no npm: the schemas of custom resources are left out" >&2
fi
# Apart, and without what it needs: it has copies of other packages' folders. Only its messages are read.
"$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target "$target/xds" xds-protos==1.85.0
# The package's own command hides the exit code.
ln -sf "$(find "$(cd "$target" && pwd)/lib" -path '*/compose/docker-compose')" "$target/bin/docker-compose"
