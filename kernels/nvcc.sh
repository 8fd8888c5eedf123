#!/bin/sh
# Installs the CUDA compiler from PyPI into a virtual environment of its own and prints its path:
#   NVCC="$(kernels/nvcc.sh)" cargo build --features cuda
# The environment is $1, or sluice-nvcc in the user's cache.
set -eu
venv="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice-nvcc}"
if [ ! -x "$venv/bin/python" ]; then python3 -m venv "$venv" >&2; fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$packages/nvidia/cu13/bin/nvcc"
