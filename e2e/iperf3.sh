#!/usr/bin/env bash
# Fetches the Debian package iperf3 and what it needs, unpacks them without installing anything, and prints the path of
# the program:
#   cargo run --release -p sluice-e2e --bin wire -- --iperf3 "$(e2e/iperf3.sh)"
#
# TOOLS  where it is or will be unpacked (default: e2e/.tools)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if command -v iperf3; then exit; fi
dir=${TOOLS:-$here/.tools}/iperf3
program=$dir/run

if [[ ! -x $program ]]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    { echo "iperf3 is not there, and this is no Debian to fetch it from: install it, or leave --iperf3 out" >&2; exit 2; }
  mkdir -p "$dir"
  cd "$dir"
  echo "fetching iperf3 with apt-get into $dir, once; nothing is installed" >&2
  apt-get download iperf3 libiperf0 libsctp1 >&2 ||
    { echo "apt-get cannot fetch iperf3 (no network, or old lists: apt-get update)" >&2; exit 2; }
  for package in ./*.deb; do dpkg-deb -x "$package" root; done
  libraries=$(dirname "$(find "$PWD/root" -name 'libiperf.so.0' | head -n 1)")
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$PWD/root/usr/bin/iperf3" >"$program.new"
  chmod +x "$program.new"
  mv "$program.new" "$program"
fi
printf '%s\n' "$program"
