#!/bin/sh
# Build .venv with the newest suitable Python and install this checkout into it; with the argument
# `dev` also the tools for working on it.
# The stamps are written last, so that an interrupted installation is taken up again.
set -eu
cd "$(dirname "$0")/.."

suitable='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'

# Print the newest Python from 3.11 to 3.13 that can make virtual environments.
find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        command -v "$name" >/dev/null 2>&1 && "$name" -c "$suitable" 2>/dev/null || continue
        # Debian's python3 without python3-venv has venv but not ensurepip.
        if "$name" -c 'import venv, ensurepip' 2>/dev/null; then echo "$name"; return; fi
        without_venv=$name
    done
    if [ -n "${without_venv:-}" ]; then
        echo "setup: $without_venv cannot make virtual environments: apt install python3-venv" >&2
    else
        echo "setup: Python 3.11, 3.12 or 3.13 is needed, and none was found" >&2
    fi
    return 1
}

if ! .venv/bin/python -c "$suitable" 2>/dev/null; then
    python=$(find_python)
    rm -rf .venv
    "$python" -m venv .venv
fi
quiet=--quiet
if [ -t 1 ]; then quiet=; fi
pip_install() {
    .venv/bin/python -m pip install $quiet --disable-pip-version-check -c constraints.txt "$@"
}

# Whether a driver of NVIDIA's is loaded; torch itself is not there yet to be asked.
has_gpu() { [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }

# PyTorch's own index of CPU builds, if it answers at once: PyPI has only the build for CUDA.
cpu_index=https://download.pytorch.org/whl/cpu
answers() {
    .venv/bin/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' \
        "$cpu_index/torch/" 2>/dev/null
}

extras=all,plots,parquet
if [ "${1:-}" = dev ]; then extras=$extras,dev; fi
echo "setup: installing into .venv (some minutes the first time)"
if ! has_gpu && answers; then
    echo "setup: no NVIDIA driver here, so torch in its build for the CPU"
    pip_install --no-deps --index-url $cpu_index torch ||
        echo "setup: that cannot be had; taking what pip finds elsewhere" >&2
fi
pip_install -e ".[$extras]"
touch .venv/.stamp
if [ "${1:-}" = dev ]; then touch .venv/.dev-stamp; fi
