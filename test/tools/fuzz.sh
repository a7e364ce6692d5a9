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
echo "$targets" | while IFS= read -r line; do
	file=${line%%:*}
	name=${line##* }
	echo "fuzz $(dirname "$file") $name for $time"
	# Short minimizing: by default it may take all of a short run.
	go test -run='^$' -fuzz="^$name\$" -fuzztime="$time" -fuzzminimizetime=10x "$(dirname "$file")" </dev/null # stdin is the list
done
