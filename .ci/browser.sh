#!/usr/bin/env bash
# Installs the browser that tests look at pages with: Chromium, from Debian's or Ubuntu's packages.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if type "$name" &>/dev/null; then exit 0; fi
done

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }
apt update
apt install --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null
