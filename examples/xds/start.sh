#!/usr/bin/env bash
# Starts this example on this machine; see ../start.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/../start.sh" "$here" "$@"
