#!/bin/sh
# Installs what the proxies in Python import into DIR/proxies. Once installed it
# calls no pip. Usage: setup.sh [DIR]; DIR is .tools of this repository if not
# given.
set -eu

python=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
dir=${1:-$here/../../.tools}/proxies
# Wheels are made for one Python.
stamp="$(cat "$here/requirements.txt" "$here/setup.sh" | sha256sum) $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit
fi
echo "installing FastAPI, uvicorn, httpx and aiohttp for the benchmark ($dir)" >&2
rm -rf "$dir" "$dir.part"
mkdir -p "$dir.part"
# --target and no environment: Debian's Python makes none without python3-venv.
"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
	--target "$dir.part" -r "$here/requirements.txt"
printf '%s\n' "$stamp" >"$dir.part/.stamp"
mv "$dir.part" "$dir"
