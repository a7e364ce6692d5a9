#!/bin/sh
# Sees to libzmq's headers and to pkg-config, by which the Go binding finds them.
# Where they are there nothing happens; root gets them by apt, anybody else is
# told what to install.
set -eu

found() {
	pkg-config --exists libzmq 2>/dev/null || return 1
	# The .pc file alone proves nothing: compile and link.
	tmp=$(mktemp -d)
	printf '#include <zmq.h>\nint main(void) { return zmq_errno(); }\n' >"$tmp/t.c"
	status=0
	# Word splitting is wanted: pkg-config prints flags.
	# shellcheck disable=SC2046
	${CC:-cc} -o "$tmp/t" "$tmp/t.c" $(pkg-config --cflags --libs libzmq) 2>/dev/null || status=1
	rm -rf "$tmp"
	return $status
}

found && exit 0
install='apt-get install -y --no-install-recommends libzmq3-dev pkg-config'
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "libzmq (headers) and pkg-config are missing; install them, on Debian and Ubuntu with: sudo $install" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "+ apt-get update" >&2
apt-get update -qq >&2
echo "+ $install" >&2
$install -qq >&2
found || {
	echo "libzmq is installed, but a test program does not link with it; is there a C compiler (cc)?" >&2
	exit 1
}
