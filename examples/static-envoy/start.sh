#!/usr/bin/env bash
# Starts the service, two simulated engines and Envoy, and ends them on Ctrl-C.
# With the argument noengines the engines are yours, at the addresses of
# firsttoken.yml. Run make build .tools/envoy first.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
firsttoken=$root/bin/firsttoken

pids=()
stop() {
	trap - EXIT INT TERM
	kill "${pids[@]}" 2>/dev/null || true
	wait
}
trap stop EXIT INT TERM

# The service comes first: LMCache looks for its controller once, at the start.
"$firsttoken" serve --config "$here/firsttoken.yml" --log-format text &
pids+=($!)
until curl -fs http://127.0.0.1:9090/healthz >/dev/null; do
	kill -0 "${pids[0]}" # ends the script where the service has ended
	sleep 0.1
done
if [[ ${1-} != noengines ]]; then
	for i in 1 2; do
		"$firsttoken" engine --listen "127.0.0.1:$((7999 + i))" --model demo --tokenizer "$root/test/tokenizer" \
			--lmcache-instance-id "engine-$i" --lmcache-algorithm sha256_cbor \
			--lmcache-controller-pull 127.0.0.1:8300 --lmcache-controller-reply 127.0.0.1:8400 &
		pids+=($!)
	done
fi
# Envoy ends when its parent does, so this shell stays and waits.
"$root/.tools/envoy" --config-path "$here/envoy.yaml" --log-level warning &
pids+=($!)
wait -n # the first one that ends takes the others with it
