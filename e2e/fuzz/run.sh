#!/usr/bin/env bash
# Fuzzes one of the agent's targets: run.sh TARGET SECONDS [libFuzzer's own options].
# Needs the toolchain of the repository and a C++ compiler. What it finds is written to findings/TARGET, what it has
# learnt to corpus/TARGET; run.sh TARGET 0 FILE gives one input once more.
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -lt 2 ]; then
    echo "usage: $0 TARGET SECONDS [libFuzzer's options]; targets: frame stream worker hello session requests http placement" >&2
    exit 2
fi
target=$1 seconds=$2
shift 2

# What cargo-fuzz passes, less the sanitizers, which stable Rust does not have. The limit of memory is the fuzzer's own.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target, build scripts and macros are built without.
triple=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="$flags" cargo build --release --locked --quiet --target "$triple" --bin fuzz
built="${CARGO_TARGET_DIR:-target}/$triple/release/fuzz"
export FUZZ_TARGET=$target

mkdir -p "corpus/$target" "findings/$target"
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
if [ "$seconds" = 0 ]; then
    "$built" "$@"
    exit
fi
# A hang is a failure as well, and so is memory that only grows.
FUZZ_SEEDS="corpus/$target" "$built" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=256 \
    -max_len=20000 -print_final_stats=1 -artifact_prefix="findings/$target/" "$@" "corpus/$target"
