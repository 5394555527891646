#!/usr/bin/env bash
# What a GPU has to show before long runs: scripts/gpu_checks.sh OUT
# The tests that need one, this processor's digits, a dry run of paper_gtav for soma and full, and Table 5 on a block
# of ViT-L. No data and no weights are needed. Every step is bounded in time, and goes on where another one fails; OUT
# gets a log of each and summary.txt. PYTHON=... chooses the interpreter, METHODS=soma,lora the rows of Table 5.
set -u
[ $# -eq 1 ] && [ "${1#-}" = "$1" ] || {
	echo "usage: [PYTHON=python3] [METHODS=soma,lora] scripts/gpu_checks.sh OUT" >&2
	exit 2
}
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
default=.venv/bin/python
[ -x "$default" ] || default=python3
python=${PYTHON:-$default}
rows=${METHODS:-full,freeze,lora,dora,pissa,vpt,soma,soma-release,hf:LoRA,hf:DoRA}
mapfile -t tests < <(grep -rl 'mark\.gpu' tests --include='test_*.py')
failed=0
: > "$out/summary.txt"

step() { # NAME SECONDS COMMAND...: rc 124 is out of time
	local name=$1 limit=$2 started=$SECONDS rc=0
	shift 2
	echo "== $name"
	timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || rc=$?
	[ "$rc" -eq 0 ] || failed=1
	tail -n 25 "$out/$name.log"
	printf 'rc %3d  %4d s  %s\n' "$rc" "$((SECONDS - started))" "$name" >> "$out/summary.txt"
}

step environment 60 "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
step tests 120 "$python" -m pytest -m gpu --durations=5 "${tests[@]}"
step golden 60 "$python" scripts/golden.py
step dry-run-full 90 "$python" -m benchmarks run paper_gtav full --dry-run --device cuda
step dry-run-soma 150 "$python" -m benchmarks run paper_gtav soma --dry-run --device cuda
step costs 120 "$python" -m benchmarks bench costs --profile paper --device cuda --rounds 5 --methods "$rows" \
	--write "$out/costs"
echo
cat "$out/summary.txt"
exit "$failed"
