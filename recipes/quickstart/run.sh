#!/bin/sh
# Train a model on the stories of a small world, and compare it with the best possible model; started by
# `make quickstart`, which sets PYTHON and RUN.
set -eu
RUN=${RUN:-runs/quickstart}

# On the GPUs where there are any, at most two; otherwise in two processes on the CPU.
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    processes=2
    export DS_ACCELERATOR=cpu
else
    processes=$((gpus < 2 ? gpus : 2))
fi

. recipes/quickstart/data.sh
step "$PYTHON" -m deepspeed.launcher.runner --log_level=warning --num_gpus="$processes" pretrain.py --recipe recipes/quickstart/pretrain.yaml --output_dir "$RUN"
step "$PYTHON" generate.py --model "$RUN" --prompt "" --num_samples 200 --max_new_tokens 120 --temperature 1 --top_k 0 \
    --top_p 1 --repetition_penalty 1 --output "$RUN/stories.jsonl"
step "$PYTHON" -m tools.small_world_check "$RUN" --dataset blocks/quickstart --samples "$RUN/stories.jsonl"

cat <<END

Look at $RUN/report.html: loss, speed, time and memory of the run, beside what can be learned.
  blocks/quickstart    the token blocks, with README.md and manifest.json
  $RUN    the model in model/, checkpoints, metrics.jsonl, tensorboard/

Next: your own text, in this environment (. .venv/bin/activate). data_files may be on the Hub: hf://USER/NAME:train.
  python3 train_tokenizer.py --data_files news.jsonl --output_dir tokenizer
  python3 preprocess.py --data_files news.jsonl --tokenizer tokenizer --block_length 2048 --output_dir blocks/news
  deepspeed pretrain.py --recipe recipes/tinyllama_1b.yaml --dataset blocks/news
END
