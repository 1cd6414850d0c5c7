#!/bin/sh
# Build .venv with the newest suitable Python and install this checkout into it.
# The stamp is written last, so that an interrupted installation is taken up again.
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
echo "setup: installing into .venv (some minutes the first time)"
quiet=--quiet
if [ -t 1 ]; then quiet=; fi
# setuptools warns of every editable installation.
PYTHONWARNINGS=ignore .venv/bin/python -m pip install $quiet --disable-pip-version-check \
    -c constraints.txt -e '.[dev,plots,parquet]'
touch .venv/.stamp
