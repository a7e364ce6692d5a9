#!/usr/bin/env bash
# Starts an example on this machine: the service, two simulated engines and Envoy,
# from firsttoken.yml and envoy.yaml of the folder given. Ctrl-C ends them. With
# noengines behind it the engines are yours, at the addresses of firsttoken.yml.
# Run make build .tools/envoy first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "${1:?usage: start.sh FOLDER [noengines]}"
firsttoken=${FIRSTTOKEN:-$root/bin/firsttoken}
envoy=${ENVOY:-$root/.tools/envoy}
admin=$(sed -n '/^admin:/,/listen:/s/.*listen: *//p' firsttoken.yml)

pids=()
stop() {
	trap - EXIT INT TERM
	kill "${pids[@]}" 2>/dev/null || true
	wait
}
trap stop EXIT INT TERM

# The service comes first: LMCache looks for its controller once, at the start.
"$firsttoken" serve --config firsttoken.yml --log-format text &
pids+=($!)
until curl -fs "http://$admin/healthz" >/dev/null; do
	kill -0 "${pids[0]}" # ends the script where the service has ended
	sleep 0.1
done
if [[ ${2-} != noengines ]]; then
	i=0
	for address in 127.0.0.1:8000 127.0.0.1:8001; do
		i=$((i + 1))
		"$firsttoken" engine --listen "$address" --model demo --tokenizer "$root/test/tokenizer" \
			--lmcache-instance-id "engine-$i" --lmcache-algorithm sha256_cbor \
			--lmcache-controller-pull 127.0.0.1:8300 --lmcache-controller-reply 127.0.0.1:8400 &
		pids+=($!)
	done
fi
# Envoy ends when its parent does, so this shell stays and waits. The base id
# tells it from any other Envoy of this machine.
"$envoy" --config-path envoy.yaml --use-dynamic-base-id --log-level warning &
pids+=($!)
wait -n # the first one that ends takes the others with it
