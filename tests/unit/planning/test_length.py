"""What a run says about its length before it starts: nothing when it fits its data, otherwise flags that do."""

import json
import random
import re

import pytest

from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.planning.global_batch import GlobalBatch, resolve_global_batch
from pretraining.planning.length import (
    MAX_EPOCHS,
    RunLength,
    Source,
    describe_unread,
    length_advice,
    oversized_step,
)

NEWS = 117_187  # blocks of 4,096 tokens in 2 GB of English news, 480 M tokens
HEADS = (32, 32)


def arguments_of(*words: str) -> PretrainArguments:
    return parse_pretrain_arguments("", ["--deepspeed", "ds_config.json", *words])


def run_of(arguments: PretrainArguments, num_blocks: int, *, num_gpus: int = 1) -> RunLength:
    """A run on one store of blocks of 4,096 tokens, by the rules of the programs."""
    batch = resolve_global_batch(arguments, HEADS, 4096, num_gpus)
    trainer, max_tokens = arguments.trainer, arguments.data.max_tokens
    steps = int(trainer["num_train_epochs"] * num_blocks / batch.blocks)
    if max_tokens is not None:
        steps = -(-max_tokens // batch.tokens)
    if trainer["max_steps"] > 0:
        steps = trainer["max_steps"]
    steps = max(1, steps)
    warmup = trainer["warmup_steps"]
    warmup_steps = int(warmup) if warmup >= 1 else round(warmup * steps)
    return RunLength(
        batch, steps, num_blocks, warmup_steps, 3e-4, [Source(None, "blocks", 1, steps * batch.blocks / num_blocks)]
    )


def advice(num_blocks: int, *words: str, num_gpus: int = 1) -> list[str]:
    """What `RunAdvice` says of a run: why it does not start, otherwise its warnings."""
    arguments = arguments_of(*words)
    run, is_synthetic = run_of(arguments, num_blocks, num_gpus=num_gpus), arguments.data.is_synthetic
    obstacle = oversized_step(run.batch, num_blocks, warmup_steps=run.warmup_steps, is_synthetic=is_synthetic)
    return list(length_advice(arguments, run)) if obstacle is None else [obstacle]


def suggested(line: str) -> list[str]:
    """The flags after the last `use`, up to the first alternative."""
    return re.split(r", | or ", line.rpartition("; use ")[2])[0].split(" for ")[0].split()


@pytest.mark.guarantee("A start warns if the run does not fit its data, with flags that do.")
def test_the_defaults_on_two_gigabytes_of_news() -> None:
    """114 steps of 4 M tokens, and 2,000 steps of warmup."""
    (line,) = advice(NEWS)
    assert line == (
        "--warmup_steps 2000: the run has 114 steps, so the learning rate ends at 1.71e-05, on its way up to "
        "--learning_rate 3.00e-04; use --global_batch_blocks 64 --warmup_steps 36, which makes 1,824 steps"
    )
    assert advice(NEWS, *suggested(line)) == []


@pytest.mark.parametrize("num_steps", [1, 9, 100, 1000, 2000])
def test_a_warmup_that_is_too_long_names_steps_that_fit(num_steps: int) -> None:
    """Whole steps: with --schedule_steps a share would be one of that, and a tenth of it may be as long as the run."""
    length = ["--max_steps", str(num_steps), "--schedule_steps", "1000000"]
    (line,) = advice(500_000_000, *length, "--warmup_steps", "2000")
    words = suggested(line)
    assert words == ["--warmup_steps", str(num_steps // (10 if num_steps < 1000 else 50))]
    assert advice(500_000_000, *length, *words) == []
    assert ("rises until the last step" in line) == (num_steps == 2000)


def test_the_warmup_of_the_first_phase_is_named() -> None:
    phases = [
        json.dumps({"name": name, "dataset": "blocks", "share": 0.5, "warmup_steps": 2000}) for name in ("one", "two")
    ]
    arguments = arguments_of("--max_steps", "1500", "--phases", *phases)
    (line,) = length_advice(arguments, run_of(arguments, 500_000_000))
    assert line.startswith("--phases: one: warmup_steps 2000: the run has 1,500 steps, so the learning rate ends at ")
    assert line.endswith("; use --phases: one: warmup_steps 30")


def test_a_run_that_fits_says_nothing() -> None:
    assert advice(500_000_000) == [], "Llama 2 itself"
    assert advice(NEWS, "--global_batch_blocks", "32") == []
    assert advice(NEWS, "--max_steps", "20", "--warmup_steps", "2") == [], "a short run that was asked for"
    assert advice(5000, "--global_batch_tokens", "none", "--warmup_steps", "0.03") == [], "a batch by micro steps"


def test_fewer_tokens_than_one_batch() -> None:
    (line,) = advice(500)
    assert line == (
        "--global_batch_tokens 4194304: a step of 1,024 blocks is more than the 500 of an epoch; use "
        "--global_batch_blocks 8 --warmup_steps 6, which makes 62 steps, or preprocess more text"
    )
    assert advice(500, *suggested(line)) == []
    line = oversized_step(GlobalBatch(4096, 8, 4, 2, flag="--global_batch_blocks 64"), 9) or ""
    assert line == (
        "--global_batch_blocks 64: a step of 64 blocks is more than the 9 of an epoch; use fewer processes or a "
        "smaller --per_device_train_batch_size, or preprocess more text"
    )
    accumulated = GlobalBatch(4096, 1, 100, 1, follows_tokens=False, flag="--gradient_accumulation_steps 100")
    assert "use --gradient_accumulation_steps 8, which makes 6 steps" in (oversized_step(accumulated, 50) or "")
    assert (oversized_step(accumulated, 7) or "").endswith(" 7 of an epoch; preprocess more text")
    assert "accumulation_steps 7, which makes 1 step" in (oversized_step(accumulated, 7, is_synthetic=True) or "")


def test_random_ids_are_not_text_of_which_there_could_be_more() -> None:
    """--dataset synthetic measures speed: it may be read often, and preprocessing would not change it."""
    for num_blocks, expected in ((1500, 0), (500, 1)):
        lines = advice(num_blocks, "--dataset", "synthetic", "--max_steps", "20", "--warmup_steps", "2")
        assert len(lines) == expected
        assert not any("preprocess" in line for line in lines)
    assert "preprocess" in " ".join(advice(500, "--max_steps", "20", "--warmup_steps", "2"))


def test_a_batch_too_large_for_the_data() -> None:
    (line,) = advice(50_000, "--warmup_steps", "0.02")
    assert line == (
        "--global_batch_tokens 4194304: the data make only 48 steps of 1,024 blocks; use --global_batch_blocks 32, "
        "which makes 1,536 steps"
    )


def test_a_few_blocks_make_no_step_of_fewer_than_eight() -> None:
    (line,) = advice(400, "--global_batch_blocks", "64", "--warmup_steps", "0")
    assert line == (
        "--global_batch_blocks 64: the data make only 6 steps of 64 blocks; use --global_batch_blocks 8, which makes "
        "48 steps; more text or a larger --num_train_epochs makes more"
    )
    assert advice(400, "--global_batch_blocks", "8", "--warmup_steps", "0") == []


def test_more_than_ten_epochs() -> None:
    (line,) = advice(NEWS, "--max_steps", "5000")
    assert line == (
        "--dataset: the run reads the data 43.7 times; text adds little after about 4 times (arXiv 2305.16264); use "
        "--max_steps 1144 for 10 times, or preprocess more text"
    )
    (line,) = advice(NEWS, "--max_tokens", str(5000 * 4_194_304))
    assert "use --max_tokens 4798283776 for 10 times" in line
    (line,) = advice(NEWS, "--num_train_epochs", "30")
    assert "use --num_train_epochs 10 for 10 times" in line


def test_a_source_of_a_mixture_that_is_read_too_often() -> None:
    """A tenth of 2 M blocks from a store of 10,000 is 20 epochs of it; half of that share would be 10."""
    batch, arguments = (
        GlobalBatch(4096, 1, 1000, 1, flag="--global_batch_tokens 4096000"),
        arguments_of("--max_steps", "2000"),
    )
    sources = [Source("news", "blocks_a", 0.9, 0.9), Source("wiki", "blocks_b", 0.1, 20.0)]
    (line,) = length_advice(arguments, RunLength(batch, 2000, 2_010_000, 100, 3e-4, sources))
    assert line == (
        "--dataset: the run reads wiki 20.0 times; text adds little after about 4 times (arXiv 2305.16264); use "
        "wiki=blocks_b:0.047 or --max_steps 1000 for 10 times"
    )
    share = 0.047 / (0.9 + 0.047)
    assert share * 2_000_000 / 10_000 <= MAX_EPOCHS


def test_epochs_of_a_mixture_are_those_of_all_blocks() -> None:
    """Half of 10,100 blocks from a store of 100 is 50.5 epochs of it: 0.19 of the run is less than 10."""
    batch, arguments = GlobalBatch(4096, 1, 10, 1, flag="--global_batch_blocks 10"), arguments_of()
    sources = [Source("a", "few", 0.5, 50.5), Source("b", "many", 0.5, 0.505)]
    (line,) = length_advice(arguments, RunLength(batch, 1010, 10_100, 10, 3e-4, sources))
    assert line.endswith("or --num_train_epochs 0.19 for 10 times")
    assert MAX_EPOCHS >= 0.19 * 50.5


def test_the_suggested_flags_fit_whatever_the_data() -> None:
    draw, num_tried = random.Random(3), 0
    for _ in range(120):
        num_blocks, num_gpus = draw.choice((20, 1000, 30_000, NEWS)) + draw.randint(0, 500), draw.choice((1, 2, 8))
        words = draw.choice(([], ["--warmup_steps", "0.01"], ["--max_steps", str(draw.randint(1, 9000))]))
        (line, *_) = advice(num_blocks, *words, num_gpus=num_gpus) or [""]
        if line and "--max_steps" not in words:
            num_tried += 1
            assert advice(num_blocks, *words, *suggested(line), num_gpus=num_gpus) == [], (num_blocks, words, line)
    assert num_tried > 20


def unread(num_blocks: int, *words: str) -> str | None:
    arguments = arguments_of(*words)
    return describe_unread(arguments, run_of(arguments, num_blocks))


def test_less_than_an_epoch_is_said_with_the_flag_that_reads_all() -> None:
    words = ["--global_batch_blocks", "8"]
    assert unread(80_000, *words, "--max_steps", "1000") == "10.0% of the data; --max_steps 10000 reads all"
    assert unread(80_000, *words, "--max_tokens", "4096000") == "1.2% of the data; --max_tokens 327680000 reads all"
    assert unread(80_000, *words, "--num_train_epochs", "0.5") == "50.0% of the data; --num_train_epochs 1 reads all"
    assert unread(80_003, *words) is None, "the blocks left are fewer than a step"
    left = " reads all but 6 blocks, fewer than a step"
    assert (unread(382, *words, "--max_steps", "20") or "").endswith(f"--max_steps 47{left}")
    assert (unread(382, *words, "--max_tokens", "65536") or "").endswith(f"--max_tokens {47 * 8 * 4096}{left}")
    assert unread(80_000, *words, "--max_steps", "10000") is None
