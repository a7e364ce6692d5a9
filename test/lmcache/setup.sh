#!/bin/sh
# Installs LMCache releases that the tests in this folder run against below
# .tools/lmcache/<version>, each with the few packages that its worker code
# imports. Once installed it calls no pip. Usage: setup.sh VERSION...
set -eu

python=${PYTHON:-python3}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
tools=${FIRSTTOKEN_TOOLS:-$root/.tools}
# Exact versions: what passes today passes tomorrow.
packages="msgspec==0.22.0 pyzmq==27.3.0 prometheus_client==0.26.0 PyYAML==6.0.3 cachetools==6.2.6"

for version in "$@"; do
	dir=$tools/lmcache/$version
	# Wheels are made for one Python.
	stamp="lmcache==$version $packages $("$python" -c 'import sys; print(sys.implementation.cache_tag)')"
	if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ]; then
		continue
	fi
	echo "installing LMCache $version for tests (Python wheels below $dir)" >&2
	rm -rf "$dir" "$dir.part"
	mkdir -p "$dir.part"
	# --no-deps: PyTorch and the rest are gigabytes that the worker never calls.
	# shellcheck disable=SC2086 # a list of packages
	"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
		--target "$dir.part" "lmcache==$version" $packages
	printf '%s\n' "$stamp" >"$dir.part/.stamp"
	mv "$dir.part" "$dir"
done
