#!/usr/bin/env bash
# Checks an agent's /metrics with promtool. Usage: promtool.sh http://127.0.0.1:9090
#
# PROMTOOL  the program (default: the one in PATH, else it is built from its Go module into TOOLS)
# TOOLS     where it is or will be built (default: e2e/.tools)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
url=${1:?usage: promtool.sh ADMIN_URL, as in http://127.0.0.1:9090}
version=v0.316.0
tools=${TOOLS:-$here/.tools}
promtool=${PROMTOOL:-$(command -v promtool || echo "$tools/promtool")}

if [[ ! -x $promtool ]]; then
  command -v go >/dev/null || { echo "promtool is not there, and no Go to build it: set PROMTOOL" >&2; exit 2; }
  mkdir -p "$tools"
  echo "building promtool $version, once" >&2
  # None of the service discoveries: they are most of the code, and not needed here.
  GOBIN=$tools go install -tags remove_all_sd "github.com/prometheus/prometheus/cmd/promtool@$version" >&2
fi

page=$(mktemp)
trap 'rm -f "$page"' EXIT
python3 -c 'import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1] + "/metrics", timeout=10).read())' \
  "${url%/}" >"$page"
families=$(grep -c '^# TYPE' "$page")
series=$(grep -vc '^#' "$page")
"$promtool" check metrics <"$page"
echo "promtool: $families families, $series series, no problem"
