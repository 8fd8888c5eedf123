#!/usr/bin/env bash
# The official `openai` package against a server of our own. Arguments go to pytest, as in: run.sh -k stream
#
# SLUICE_AGENT  the binary (default: target/release/sluice-agent of this checkout)
# SLUICE_MODEL  a model directory (default: the bundled one); its reference.json is compared with
# SLUICE_FLAGS  more flags for the server under test, as in "--layout disaggregated --attention-ranks 2 --expert-workers 4"
# VENV          where the Python environment is or will be made
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
agent=${SLUICE_AGENT:-${CARGO_TARGET_DIR:-$root/target}/release/sluice-agent}
venv=${VENV:-$here/.venv}

if [[ ! -x $agent ]]; then
  echo "$agent is not there: build it with 'cargo build --release -p sluice-agent', or set SLUICE_AGENT" >&2
  exit 2
fi
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/installed.txt"
fi

scratch=$(mktemp -d)
pids=()
stop() {
  status=$?
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if ((status != 0)); then
    for log in "$scratch"/*.log; do echo "--- the end of $(basename "$log")" && tail -n 40 "$log"; done >&2
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap stop EXIT

# Four free ports, all held open at once so that no two are the same; below those the kernel gives to connections of
# clients, one of which might take a port before the server does.
read -r port admin guarded_port guarded_admin < <(python3 - <<'PY'
import random, socket
held = []
while len(held) < 4:
    try:
        held.append(socket.create_server(("127.0.0.1", random.randrange(20000, 30000))))
    except OSError:
        pass
print(*(s.getsockname()[1] for s in held))
PY
)

serve() { # name, listen port, admin port, flags...
  local name=$1 listen=$2 admin_listen=$3
  shift 3
  "$agent" serve ${SLUICE_MODEL:+--model "$SLUICE_MODEL"} --listen "127.0.0.1:$listen" \
    --admin-listen "127.0.0.1:$admin_listen" "$@" >"$scratch/$name.log" 2>&1 &
  pids+=($!)
}

ready() { # pid, admin port
  for _ in $(seq 600); do
    python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$2/readyz', timeout=2)" 2>/dev/null && return
    kill -0 "$1" 2>/dev/null || { echo "the server ended before it was ready" >&2; return 1; }
    sleep 0.2
  done
  echo "the server was not ready in time" >&2
  return 1
}

echo key-for-the-tests >"$scratch/keys"
# shellcheck disable=SC2086 # flags are words
serve server "$port" "$admin" ${SLUICE_FLAGS:-}
serve guarded "$guarded_port" "$guarded_admin" --api-key-file "$scratch/keys" --max-concurrency 1 --max-body 65536
ready "${pids[0]}" "$admin"
ready "${pids[1]}" "$guarded_admin"

export SLUICE_URL=http://127.0.0.1:$port SLUICE_ADMIN_URL=http://127.0.0.1:$admin
export SLUICE_GUARDED_URL=http://127.0.0.1:$guarded_port SLUICE_GUARDED_ADMIN_URL=http://127.0.0.1:$guarded_admin
export SLUICE_GUARDED_KEY=key-for-the-tests SLUICE_GUARDED_MAX_BODY=65536
[[ -n ${SLUICE_MODEL:-} ]] && export SLUICE_REFERENCE=$SLUICE_MODEL/reference.json
cd "$here"
"$venv/bin/python" -m pytest "$@"
