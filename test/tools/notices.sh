#!/bin/sh
# Writes the licences of everything that is linked into the program to the file
# given: the Go modules that cmd/firsttoken is built from, and the Rust crates of
# prompt/native. Both must have been downloaded.
set -eu

out=${1:?usage: notices.sh OUT}
cd "$(dirname -- "$0")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# texts NAME LICENCE FOLDER prints the licence files of one of them.
texts() {
	printf '\n================================================================\n%s\n%s\n' "$1" "$2"
	found=
	for file in "$3"/LICEN[CS]E* "$3"/licen[cs]e* "$3"/NOTICE* "$3"/COPYING* "$3"/COPYRIGHT*; do
		[ -f "$file" ] || continue
		found=yes
		printf '\n'
		cat "$file"
	done
	# Some crates name their licence only.
	[ -n "$found" ] || [ -n "$2" ] || {
		echo "notices.sh: $1 has no licence file in $3" >&2
		exit 1
	}
}

go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/firsttoken | sort -u >"$tmp/modules"
while read -r path version dir; do
	texts "Go module $path $version" '' "$dir"
done <"$tmp/modules" >"$tmp/out"
(cd prompt/native && cargo tree --locked --offline --edges normal --prefix none --format '{p}|{l}') |
	sed 's/ (proc-macro)//; s/ (\*)$//' | sort -u >"$tmp/crates"
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
while IFS='|' read -r crate licence; do
	name=${crate%% v*}
	version=${crate#* v}
	case $crate in *"("*) continue ;; esac # our own, by its path
	dir=
	for d in "$sources"/*/"$name-$version"; do dir=$d; done
	texts "Rust crate $name $version" "$licence" "$dir"
done <"$tmp/crates" >>"$tmp/out"
mv "$tmp/out" "$out"
