#!/bin/sh
# Vets and builds the program in every flavour that leaves something out, and
# sees that each one starts. The flavours of cmd/firsttoken/main.go's doc:
# nonative (no Rust library), nozmq (no libzmq), and no cgo at all.
set -eu

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

variant() { # CGO_ENABLED tags
	echo "variant CGO_ENABLED=$1 -tags=$2"
	CGO_ENABLED=$1 go vet -tags="$2" ./...
	CGO_ENABLED=$1 go build -buildvcs=false -tags="$2" -o "$out/firsttoken" ./cmd/firsttoken
	"$out/firsttoken" --help >/dev/null
}

variant 1 nonative
variant 1 nozmq
variant 1 nonative,nozmq
variant 0 ''
