#!/usr/bin/env bash
# Install what `make studio-check` needs beside .venv: Debian's Chromium, as root where there is apt-get. Where it cannot
# be had the tests skip, and say so.
set -euo pipefail
command -v chromium > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
else
  echo "not root, or no apt-get: chromium is taken if it is there" >&2
fi
