#!/bin/sh
# Builds the Rust library once per state of its sources, and prints the folder
# that holds libfirsttoken_native.a and firsttoken_native.h:
#
#   dir=$(prompt/native/build.sh)
#   export CGO_CFLAGS="-O2 -g -I$dir" CGO_LDFLAGS="-O2 -g -L$dir"
#
# The folder's name is the hash of the sources, the Rust version and this script,
# because Go's build cache sees a changed linker flag, but not a changed static
# library. Where the folder exists nothing is built and cargo is not called.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
cd "$here"

hash=$({
	find src -type f | LC_ALL=C sort | xargs sha256sum
	sha256sum Cargo.toml Cargo.lock firsttoken_native.h build.sh
	rustc --version
	uname -sm
} | sha256sum | cut -c1-16)
dir=$root/.tools/native/$hash

if [ ! -f "$dir/libfirsttoken_native.a" ]; then
	echo "building the native tokenizer library (cargo, one to three minutes)" >&2
	# Static pcre2: the program needs no libpcre2 where it runs.
	PCRE2_SYS_STATIC=1 CARGO_TARGET_DIR=$root/.tools/native/target \
		cargo build --locked --release --quiet >&2
	mkdir -p "$dir"
	cp firsttoken_native.h "$dir/"
	# The rename comes last, so that a folder with a library is complete.
	cp "$root/.tools/native/target/release/libfirsttoken_native.a" "$dir/.partial.$$"
	mv "$dir/.partial.$$" "$dir/libfirsttoken_native.a"
fi
echo "$dir"
