#!/bin/bash
# Writes docs/experiments/simulated.md anew: every command on that page is run
# here, in a folder that has the traces, and its output put below it. Takes half
# an hour on two free cores. The outputs in docs/simulate.md, the GUIDE, are
# made anew too, where the commands above them replay one of the traces.
#
# usage: simulated.sh PROGRAM TRACES PAGE GUIDE
set -eu -o pipefail

program=$(realpath "$1")
traces=$(realpath "$2")
page=$(realpath "$3")
guide=$(realpath "$4")
# Commands run in a folder of their own that has the traces, and get the plots.
here=$(mktemp -d)
new=$here/page.md
trap 'rm -rf "$here"' EXIT
cd "$here"
ln -s "$traces"/*.jsonl "$traces"/*.csv .

say() { cat >>"$new"; }

# run ARGUMENTS… puts the command and what it prints on the page.
run() {
	echo "firsttoken simulate $*" >&2
	{
		echo
		echo '```'
		echo "$ firsttoken simulate $*"
		nice "$program" simulate "$@" 2>&1
		echo '```'
	} >>"$new"
}

# drawn FILE ARGUMENTS… is run with a plot that stands below it.
drawn() {
	file=$1
	shift
	run "$@" --plot "$file"
	printf '\n![%s](%s)\n' "distribution of times to first token, and queue" "$file" >>"$new"
}

# Fewer are quicker, for a look.
seeds=${SEEDS:-3}
# The service's policies that look at the cache or the load, and those of others.
compared=kvaware,leastload,qps,roundrobin,ttft,ttft-hold,uncached,lmetric,llmd-affinity,dynamo,oracle
conversation=conversation_0_2400s.jsonl
synthetic=synthetic_0_680s.jsonl
code=azure_llm_2023_code_first.csv
chat=azure_llm_2023_conv_first.csv

say <<'TEXT'
# Policies on recorded traffic, simulated

Written by `make experiments-simulated`, which runs every command below and puts its output here; nothing is typed in by hand. The scoring
is the service's own code on a virtual clock, the engines are step models (`simulator`): read the ratios, not the seconds.

The traces are `conversation_trace.jsonl` (its first 2,400 s) and `synthetic_trace.jsonl` (680 s) of
[Mooncake](https://github.com/kvcache-ai/Mooncake) (`FAST25-release/traces`), and the first two thirds of the code and conversation traces
of [Azure's public dataset](https://github.com/Azure/AzurePublicDataset) of 2023. Commands run in a folder that holds them. Seeds
spread the arrivals of a batch differently; figures are means over all of a command, and the last column shows how far apart single runs were.

`trapezoid` is the policy of the plain formula that this project began with, with atomic booking and exact release: the seed of all ratios.
`ttft` weighs time, `ttft-hold` is `ttft` with holding. `kvaware` has production-stack's threshold of 2,000 tokens unless a command says another. `oracle` chooses greedily with the engines' true state, which no router can see.

## What a fleet carries

How many requests a second each policy carries with a mean time to first token of one second at most: what one would buy engines for. Each is
found by bisection to one per cent: `exceeded at` is the least rate that broke the limit.
TEXT
run $conversation --endpoints 4 --find-capacity --slo-ttft 1s --seeds $seeds --policy ttft,ttft-hold,kvaware,roundrobin
run $conversation --endpoints 8 --find-capacity --slo-ttft 1s --seeds $seeds --policy ttft,ttft-hold,kvaware,roundrobin
run $conversation --endpoints 8 --profile h100x2-32b-cpu --find-capacity --slo-ttft 1s --seeds $seeds --policy ttft,ttft-hold
run $synthetic --warm 60 --endpoints 4 --find-capacity --slo-ttft 1s --seeds $seeds --policy ttft,ttft-hold
run $code --endpoints 8 --profile 3090-7b --find-capacity --slo-ttft 1s --policy ttft,ttft-hold
run $chat --endpoints 8 --profile 3090-7b --find-capacity --slo-ttft 1s --policy ttft,ttft-hold

say <<'TEXT'

## Near saturation

Here a better choice shows most, because what one request gains all behind it gain too. Four engines at a load of .85, where the seed's policy is
saturated at 1:
TEXT
run $conversation --endpoints 4 --speed 1.216 --seeds $seeds --policy $compared
say <<'TEXT'

Eight engines at .85, .95 and 1.0:
TEXT
run $conversation --endpoints 8 --speed 2.486 --seeds $seeds --policy ttft,ttft-hold,oracle
run $conversation --endpoints 8 --speed 2.778 --seeds $seeds --policy ttft,ttft-hold,oracle
drawn simulated.svg $conversation --endpoints 8 --speed 2.925 --seeds $seeds --policy $compared
say <<'TEXT'

Mooncake's synthetic trace, whose prompts are longer and share more:
TEXT
run $synthetic --warm 60 --endpoints 4 --speed 1.355 --seeds $seeds --policy ttft,ttft-hold,oracle
run $synthetic --warm 60 --endpoints 4 --speed 1.514 --seeds $seeds --policy ttft,ttft-hold,oracle
say <<'TEXT'

A larger model, whose KV memory is short:
TEXT
run $conversation --endpoints 8 --profile h100x2-32b-cpu --speed 1.411 --seeds $seeds --policy ttft,ttft-hold,oracle
run $conversation --endpoints 8 --profile h100x2-32b-cpu --speed 1.620 --seeds $seeds --policy ttft,ttft-hold,oracle
say <<'TEXT'

Prompts of which nothing is cached, on small engines:
TEXT
run $code --endpoints 8 --profile 3090-7b --speed 1.110 --policy ttft,ttft-hold,oracle

say <<'TEXT'

## Where nothing is gained

At half the load, engines mostly stand ready, and any policy that keeps conversations together does:
TEXT
run $conversation --endpoints 8 --speed 1.463 --seeds $seeds --policy ttft,ttft-hold,kvaware,leastload,oracle
run $chat --endpoints 8 --profile 3090-7b --speed 1 --policy ttft,ttft-hold,leastload,roundrobin

say <<'TEXT'

## What each term of `ttft` is worth

The policy with one of its terms left out, on recorded conversations, on Mooncake's synthetic trace, on engines that differ and on groups that
share a fresh prefix. None pays everywhere; each pays somewhere by more than it costs elsewhere:
TEXT
run $conversation --endpoints 4 --speed 1.216 --seeds $seeds --policy ablation
run $conversation --endpoints 8 --speed 2.778 --seeds $seeds --policy ablation
run $synthetic --warm 60 --endpoints 4 --speed 1.514 --seeds $seeds --policy ablation
run $conversation --endpoints 4,4@0.4/160k --speed 1.658 --seeds $seeds --policy ablation
run --workload fan-out --endpoints 4 --seeds $seeds --policy ablation

say <<'TEXT'

## Engines that differ, and memory that is short

Four engines at full speed and four at 0.4 of it with less memory, at loads of .85 and 1.0; then with a fit for each kind:
TEXT
run $conversation --endpoints 4,4@0.4/160k --speed 1.658 --seeds $seeds --policy ttft,ttft-hold,oracle
run $conversation --endpoints 4,4@0.4/160k --speed 1.658 --seeds $seeds --policy ttft,ttft-hold --kv-room=false
run $conversation --endpoints 4,4@0.4/160k --speed 1.951 --seeds $seeds --policy ttft,ttft-hold
run $conversation --endpoints 4,4@0.4/160k --speed 1.658 --seeds $seeds --policy ttft,ttft-hold --fit-per-kind
say <<'TEXT'

Eight alike with less memory than they need:
TEXT
run $conversation --endpoints 8 --kv-tokens 160k --speed 2.058 --seeds $seeds --policy ttft,ttft-hold
run $conversation --endpoints 8 --kv-tokens 160k --speed 2.058 --seeds $seeds --policy ttft,ttft-hold --kv-room=false

say <<'TEXT'

## Caches that engines share

Each engine reads the others' host memory, at 6.5e-6 and at 2e-5 seconds a token:
TEXT
run $conversation --endpoints 4 --speed 1.216 --seeds $seeds --policy ttft,ttft-hold --shared-cache
run $conversation --endpoints 8 --speed 2.925 --seeds $seeds --policy ttft,ttft-hold --shared-cache
run $conversation --endpoints 4 --speed 1.216 --seeds $seeds --policy ttft,ttft-hold --shared-cache --fetch-seconds 2e-5
run $conversation --endpoints 8 --speed 2.925 --seeds $seeds --policy ttft,ttft-hold --shared-cache --fetch-seconds 2e-5

say <<'TEXT'

## What a router does not know

Lengths misjudged as a guess from characters misjudges them, events five seconds late, and no events at all but the memory of what was routed:
TEXT
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold --token-bias 1.3 --token-sigma .2
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold --kv-delay 5s
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold --cache-source routed
say <<'TEXT'

One router; two that share what is booked; two that do not:
TEXT
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold --replicas 2 --ledger
run $conversation --endpoints 8 --speed 2.632 --seeds $seeds --policy ttft,ttft-hold --replicas 2
say <<'TEXT'

An engine that is gone for five minutes and comes back with nothing cached:
TEXT
run $conversation --endpoints 8 --speed 2 --seeds $seeds --policy ttft,ttft-hold,kvaware --fail 3,900,1200

say <<'TEXT'

## Workloads whose clients wait

The two experiments of the proposal that this project began with, as rebuilt: two small engines, 15 users of 10 questions each, and 5 clients of 20
long prompts that begin alike. `kvaware` is the longest match with no threshold:
TEXT
run --workload multi-round --endpoints 2 --profile 3090-7b --seeds $seeds --policy ttft,ttft-hold,kvaware,qps,roundrobin --kvaware-threshold 0
run --workload shared-prefix --endpoints 2 --profile 3090-7b --seeds $seeds --policy ttft,ttft-hold,kvaware,qps,roundrobin --kvaware-threshold 0
say <<'TEXT'

Groups of eight that come almost at once and share a fresh prefix, as agents send them; then at twice the pace:
TEXT
run --workload fan-out --endpoints 4 --seeds $seeds --policy ttft,ttft-hold,oracle
run --workload fan-out --endpoints 4 --speed 2 --seeds $seeds --policy ttft,ttft-hold,oracle

# refresh copies a page and runs its commands again.
refresh() {
	old=
	while IFS= read -r line; do
		if [[ $line == '    $ firsttoken simulate '* ]]; then
			old=
			read -ra words <<<"${line#'    $ firsttoken simulate '}"
			if [[ -e ${words[0]} ]]; then
				echo "firsttoken simulate ${words[*]}" >&2
				echo "$line"
				nice "$program" simulate "${words[@]}" 2>&1 </dev/null | sed 's/^/    /'
				old=true
				continue
			fi
		elif [[ $old && $line == '    '* ]]; then
			continue
		else
			old=
		fi
		echo "$line"
	done
}
refresh <"$guide" >guide.md

cp "$new" "$page"
cp guide.md "$guide"
cp ./*.svg "$(dirname "$page")"
