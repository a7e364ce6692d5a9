#!/bin/sh
# Installs below DIR/coordinator what the coordinator and the controller of
# LMCache import besides what test/lmcache/setup.sh installs. Once installed it
# calls no pip. Usage: setup.sh [DIR]; DIR is .tools of this repository if not
# given.
set -eu

python=${PYTHON:-python3}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
dir=${1:-$root/.tools}/coordinator
# Exact versions: what passes today passes tomorrow. All that they need is listed.
packages="fastapi==0.165.0 starlette==1.10.0 uvicorn==0.54.0 httpx==0.28.1 numpy==2.4.6 blake3==1.0.11 pydantic==2.14.3
pydantic_core==2.50.4 annotated-doc==0.0.7 annotated-types==0.8.0 anyio==4.16.0 certifi==2026.10.18 click==8.5.1 h11==0.16.0
httpcore==1.0.9 idna==3.20 typing_extensions==4.16.0 typing-inspection==0.4.5 opentelemetry-api==1.45.2 psutil==7.2.2"
# Wheels are made for one Python.
stamp="$packages $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit
fi
echo "installing what LMCache's coordinator needs for tests (Python wheels below $dir)" >&2
rm -rf "$dir" "$dir.part"
mkdir -p "$dir.part"
# shellcheck disable=SC2086 # a list of packages
"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
	--target "$dir.part" $packages
printf '%s\n' "$stamp" >"$dir.part/.stamp"
mv "$dir.part" "$dir"
