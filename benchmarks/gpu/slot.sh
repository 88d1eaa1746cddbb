#!/usr/bin/env bash
# The first minutes on a machine with an H100 or H200: what only a GPU can show, the most valuable first.
#
#   bash benchmarks/gpu/slot.sh [WHEELS] [--output RESULTS/gpu.md] [other flags of benchmarks.gpu]
#
# WHEELS is a folder of wheels of what this Python lacks, for a machine without a network; the tests need pytest and
# pytest-timeout. A call takes 12 minutes at most, WHEELS included: what runs then is killed, and counts as failed. A
# part starts only if what is left is enough for it, so call this twice: parts 1 and 2 run in the first call, 3 and 4 in
# the second.
#   1  a small model: save, resume, export, generate (2 minutes)
#   2  Llama-2-7B, the same with each of its three largest levers off, and ZeRO-1 (8)
#   3  a profiled micro step, and the decoder with and without its levers (2)
#   4  pytest -m gpu (5)
# Results: RESULTS/gpu.md, gpu.json and gpu-trace.json.gz, by default in docs/benchmarks. The same command resumes from
# gpu.json, or else from docs/benchmarks/gpu.json: what is missing, then what failed. To resume on a fresh machine, copy
# RESULTS to it first. Paths are relative to the folder that this is called from.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
path=$root
if [[ $# -gt 0 && $1 != -* ]]; then
  compgen -G "$1/*.whl" >/dev/null || { echo "error: $1: not a folder of wheels; use another, or none" >&2; exit 2; }
  site=$root/build/site-$(cd "$1" && ls -- *.whl | cksum | cut -d " " -f 1)  # for each list of wheels its own
  if [[ ! -d $site ]]; then
    rm -rf "$site.part"
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site.part" "$1"/*.whl
    mv "$site.part" "$site"
  fi
  path=$path:$site
  shift
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
minutes=$("$python" -c "print(round(12 - $SECONDS / 60, 2))")
# -P: modules of the caller's folder are not meant.
exec "$python" -P -m benchmarks.gpu --slot --minutes "$minutes" --output "$root/docs/benchmarks/gpu.md" "$@"
