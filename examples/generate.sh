#!/usr/bin/env bash
# Writes the generated files of the examples anew: make generate calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
go build -buildvcs=false -o "$out/firsttoken" ../cmd/firsttoken

write() { # FILE ARGUMENT…
	local file=$1
	shift
	"$out/firsttoken" envoy "$@" >"$out/new"
	# The file's own mode is kept, and a failure leaves it as it was.
	cat "$out/new" >"$file"
}

write static-envoy/envoy.yaml bootstrap --config static-envoy/firsttoken.yml
write cluster-header/envoy.yaml bootstrap --config cluster-header/firsttoken.yml --route cluster-header
write xds/envoy.yaml bootstrap --config xds/firsttoken.yml --xds
write systemd/envoy.yaml bootstrap --config systemd/firsttoken.yml --envoy-listen 0.0.0.0:8080
write sidecar/local/envoy.yaml bootstrap --config sidecar/local/firsttoken.yml --service unix:choices.sock
write sidecar/manifests.yaml manifests --kind sidecar --config sidecar/firsttoken.yml
write istio/manifests.yaml manifests --kind istio --config istio/firsttoken.yml
write envoy-gateway/manifests.yaml manifests --kind envoy-gateway --config envoy-gateway/firsttoken.yml
write inference-extension/manifests.yaml manifests --kind inferencepool --config inference-extension/firsttoken.yml
