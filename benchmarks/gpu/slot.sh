#!/usr/bin/env bash
# The first minutes on a machine with an H100 or H200: what only a GPU can show, the most valuable first.
#
#   bash benchmarks/gpu/slot.sh [WHEELS] [--flags of benchmarks.gpu]
#
# WHEELS is a folder of wheels of what this Python lacks, for a machine without a network. It takes 12 minutes at most;
# the same command resumes with what is missing. On a fresh machine it resumes from docs/benchmarks/gpu.json.
#   1  a small model: save, resume, export, generate (2 minutes)
#   2  Llama-2-7B, and the same with each of its three largest levers off (7)
#   3  a profiled micro step, and the decoder with and without its levers (2)
#   4  pytest -m gpu (5)
# Results: docs/benchmarks/gpu.md, gpu.json and gpu-trace.json.gz, or beside --output.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if [[ $# -gt 0 && -d $1 ]]; then
  site=$PWD/build/site
  if [[ ! -d $site ]]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site.part" "$1"/*.whl
    mv "$site.part" "$site"
  fi
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
  shift
fi
exec "$python" -m benchmarks.gpu --slot --minutes 12 "$@"
