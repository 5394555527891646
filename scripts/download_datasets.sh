#!/usr/bin/env bash
# Fetch data sets below a data root: scripts/download_datasets.sh --dataset gtav,bdd100k --root /data
# --list prints what there is, --dry-run what would be fetched; --help tells the rest.
set -euo pipefail
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -c 'import httpx2, pydantic, typer' 2>/dev/null || {
	echo "error: the suite's environment is missing; run: make -C $PWD setup" >&2
	exit 2
}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
cd "$from" # relative paths are those of the caller
exec "$python" -m benchmarks download "$@"
