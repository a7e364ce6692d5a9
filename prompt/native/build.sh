#!/bin/sh
# Builds the Rust library once per state of its sources, and tells where it is.
#
#   build.sh       prints the folder of libfirsttoken_native.a and its header
#   build.sh env   prints the same as settings for go: eval "$(build.sh env)"
#   build.sh test  runs the library's own tests, once per state of its sources
#
# The folder's name is the hash of the sources, of the Rust version and of this
# script, because Go's build cache sees a changed flag, but not a changed static
# library. Where the folder exists nothing is built and cargo is not called.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
cd "$here"

hash=$({
	find src -type f | LC_ALL=C sort | xargs sha256sum
	sha256sum Cargo.toml Cargo.lock .cargo/config.toml build.sh
	rustc --version
	uname -sm
} | sha256sum | cut -c1-16)
dir=$root/.tools/native/$hash

if [ ! -f "$dir/libfirsttoken_native.a" ]; then
	echo "building the native tokenizer library with cargo (one to three minutes)" >&2
	cargo build --locked --release --quiet >&2
	mkdir -p "$dir"
	cp src/firsttoken_native.h "$dir/"
	# The library's name comes last, so that a folder that has it is complete.
	cp "$root/.tools/native/target/release/libfirsttoken_native.a" "$dir/.partial.$$"
	mv "$dir/.partial.$$" "$dir/libfirsttoken_native.a"
fi

case ${1-} in
env) echo "export CGO_CFLAGS='-O2 -g -I$dir' CGO_LDFLAGS='-O2 -g -L$dir'" ;;
test)
	if [ ! -f "$dir/tested" ]; then
		cargo test --locked --release --quiet >&2
		touch "$dir/tested"
	fi
	;;
*) echo "$dir" ;;
esac
