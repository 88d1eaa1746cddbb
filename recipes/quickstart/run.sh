#!/bin/sh
# The whole way from raw news to sampled text; started by `make quickstart`, which sets PYTHON and RUN.
set -eu

# On the GPUs where there are any, at most two; otherwise in two processes on the CPU.
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -eq 0 ]; then
    processes=2
    export DS_ACCELERATOR=cpu
else
    processes=$((gpus < 2 ? gpus : 2))
fi

# Show a command as it can be pasted, then run it.
step() {
    printf '\n$'
    for word in "$@"; do
        case $word in
            *' '*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

step "$PYTHON" preprocess.py --recipe recipes/quickstart/preprocess.yaml
step deepspeed --num_gpus="$processes" pretrain.py --recipe recipes/quickstart/pretrain.yaml --output_dir "$RUN"
step "$PYTHON" generate.py --model "$RUN" --prompt "I wanna go" "The council" "Scientists have" --temperature 0.7 --max_new_tokens 80

cat <<END

The whole way is done. Where things lie:
  blocks/quickstart    token blocks, with README.md and manifest.json
  $RUN    metrics.jsonl, tensorboard/, checkpoints; the exported model in model/

Next: your own text, in this environment (. .venv/bin/activate).
  python3 train_tokenizer.py --data_files news.jsonl --output_dir tokenizer
  python3 preprocess.py --data_files news.jsonl --tokenizer tokenizer --block_length 2048 --output_dir blocks/news
  deepspeed pretrain.py --recipe recipes/tinyllama_1b.yaml --dataset blocks/news
END
