# The data of recipes/quickstart: stories of a small world, a tokenizer for them, token blocks. What is there already stays.
#   PYTHON=python3 sh recipes/quickstart/data.sh
set -eu

# Show a command as it can be pasted, then run it.
step() {
    printf '\n$'
    for word in "$@"; do
        case $word in
            '' | *' '*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

made=build/small_world
[ -e $made/news.jsonl ] || step "$PYTHON" -m tools.small_world --num_stories 30000 --seed 7 --output $made/news.jsonl
[ -e $made/tokenizer ] ||
    step "$PYTHON" train_tokenizer.py --data_files $made/news.jsonl --vocab_size 1152 --output_dir $made/tokenizer
step "$PYTHON" preprocess.py --recipe recipes/quickstart/preprocess.yaml
