#!/bin/sh
# Runs every fuzz target of the repository, each for the time given (10s).
set -eu

time=${1:-10s}
# grep prints file:line; a folder is a package.
targets=$(grep -rho --include='*_test.go' -H '^func Fuzz[A-Za-z0-9_]*' . | sort)
[ -n "$targets" ] || {
	echo "no fuzz targets found" >&2
	exit 1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET. Short minimizing: by default it may take all of a short run.
fuzz() {
	status=0
	go test -run='^$' -fuzz="^$2\$" -fuzztime="$time" -fuzzminimizetime=10x "$1" >"$log" 2>&1 </dev/null || status=$?
	cat "$log"
	return "$status"
}

# Go's fuzzer can take the end of its own time for a failure: it then says only
# «context deadline exceeded», and names no input. Such a run proves nothing,
# so the target is run again, and its second word counts.
out_of_time() {
	grep -q '^    context deadline exceeded$' "$log" && ! grep -q 'Failing input written\|panic:' "$log"
}

echo "$targets" | while IFS= read -r line; do
	package=$(dirname "${line%%:*}")
	name=${line##* }
	echo "fuzz $package $name for $time"
	fuzz "$package" "$name" || {
		out_of_time || exit 1
		echo "fuzz $package $name again: its time ended while an input was under way"
		fuzz "$package" "$name" || exit 1
	}
done
