#!/bin/sh
# Installs what the proxies in Python import into DIR/proxies. Once installed it
# calls no pip. Usage: setup.sh [DIR]; DIR is .tools of this repository if not
# given.
set -eu

python=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=${1:-$here/../../.tools}/proxies
# Wheels are made for one Python.
stamp="$(cat "$here/requirements.txt") $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
if [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit
fi
echo "installing FastAPI, uvicorn, httpx and aiohttp for the benchmark ($venv)" >&2
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: -r "$here/requirements.txt"
printf '%s\n' "$stamp" >"$venv/.stamp"
