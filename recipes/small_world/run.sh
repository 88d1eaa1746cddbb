#!/bin/sh
# A small world of news, a model of it, and how far that is from what can be learned.
#   PYTHON=python3 sh recipes/small_world/run.sh
set -eu
RUN=${RUN:-runs/small_world}

# On the GPUs where there are any, at most two; otherwise in two processes on the CPU.
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    processes=2
    export DS_ACCELERATOR=cpu
else
    processes=$((gpus < 2 ? gpus : 2))
fi

. recipes/small_world/data.sh
step deepspeed --num_gpus="$processes" pretrain.py --recipe recipes/small_world/pretrain.yaml --output_dir "$RUN"
step "$PYTHON" generate.py --model "$RUN" --prompt "" --num_samples 200 --max_new_tokens 120 --temperature 1 --top_k 0 \
    --top_p 1 --repetition_penalty 1 --output "$RUN/stories.jsonl"

cat <<END

Where things lie:
  blocks/small_world    token blocks, with README.md and manifest.json
  $RUN    metrics.jsonl, report.html, tensorboard/, checkpoints; the exported model in model/

Next: your own text, in this environment (. .venv/bin/activate).
  python3 train_tokenizer.py --data_files news.jsonl --output_dir tokenizer
  python3 preprocess.py --data_files news.jsonl --tokenizer tokenizer --block_length 2048 --output_dir blocks/news
  deepspeed pretrain.py --recipe recipes/tinyllama_1b.yaml --dataset blocks/news

What the model has learned, beside what can be learned:
END
step "$PYTHON" -m tools.small_world_check "$RUN" --dataset blocks/small_world --samples "$RUN/stories.jsonl"
