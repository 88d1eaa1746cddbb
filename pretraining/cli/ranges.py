"""The range of every numeric flag, ours and the Trainer's, in one table.

A bound is either what makes sense (a probability) or far beyond any use, so that a typo is rejected before it hangs,
fills a disk or trains nothing. A test fails when a program has a numeric flag without a range.
"""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, each bound included unless it is `above_low` or `below_high`.

    With `whole_from_one`, numbers from 1 on count steps, and those below are a share of the run. The values `also` are
    allowed outside. `hint` names what to use instead of a rejected value.
    """

    low: float
    high: float
    above_low: bool = False
    below_high: bool = False
    whole_from_one: bool = False
    also: tuple[float, ...] = ()
    hint: str = ""

    def problem(self, number: float) -> str | None:
        """What is wrong with a number, None when it is in the range. NaN never is, nor is an infinity."""
        if number in self.also:
            return None
        is_inside = self.low <= number <= self.high and isfinite(number)
        if not is_inside or (self.above_low and number == self.low) or (self.below_high and number == self.high):
            return f"must be in {self}{self.hint and '; '}{self.hint}"
        if self.whole_from_one and number >= 1 and number != int(number):
            return "must be a whole number of steps, or a share of the run below 1"
        return None

    def __str__(self) -> str:
        """The range as mathematics writes it."""
        return f"{'(' if self.above_low else '['}{_text(self.low)}, {_text(self.high)}{')' if self.below_high else ']'}"


def _text(bound: float) -> str:
    short = f"{bound:g}"
    return short.replace("e+0", "e").replace("e+", "e") if float(short) == bound else f"{bound}"


SEED = Range(0, 2**32 - 1)  # numpy takes 32 bits
STEPS = Range(1, 10**9)
TOKENS = Range(1, 10**18)
COUNT = Range(1, 10**6)
COUNT_OR_NONE = Range(0, 10**6)
WORKERS = Range(1, 1024)
SHARE = Range(0, 1)
BETA = Range(0, 1, below_high=True)
RATE = Range(0, 1, above_low=True)
BLOCK_LENGTH = Range(2, 1 << 24)
BYTES = Range(1, 1 << 40)  # 1 TiB
NUM_TILES = Range(1, 1 << 16)
FINITE = Range(-1e18, 1e18)  # of a flag that is not in the table

RANGES: dict[str, Range] = {
    # model
    "pad_vocabulary_to_multiple_of": Range(1, 1 << 16),
    "sequence_parallel_size": Range(1, 1024),
    "loss_tiles": NUM_TILES,
    "mlp_tiles": NUM_TILES,
    # data
    "block_length": BLOCK_LENGTH,
    "vocab_size": Range(260, 10**6),  # 256 bytes, three special tokens and one more; one character for each id
    "global_batch_tokens": Range(1, 10**12),
    "global_batch_blocks": Range(1, 10**9),
    "max_tokens": TOKENS,
    "share": Range(0, 1, above_low=True),  # of a phase
    "seed": SEED,
    "data_seed": SEED,
    # optimization; the Trainer's flags among ours
    "learning_rate": RATE,
    "min_learning_rate": SHARE,
    "warmup_steps": Range(0, 10**9, whole_from_one=True),
    "decay_steps": Range(0, 10**9, above_low=True, whole_from_one=True),
    "schedule_steps": STEPS,
    "weight_decay": SHARE,
    "adam_beta1": BETA,
    "adam_beta2": BETA,
    "adam_epsilon": Range(1e-30, 1),  # at 0, which 1e-50 is in fp32, a weight without gradient becomes 0/0
    "max_grad_norm": Range(0, 10**9, hint="0 does not clip"),
    "spike_threshold": Range(0, 10**9, above_low=True),
    "max_rollbacks": COUNT_OR_NONE,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    # length
    "num_train_epochs": Range(0, 10**6, above_low=True, hint="--max_steps or --max_tokens set another length"),
    "max_steps": Range(1, 10**9, also=(-1,), hint="-1 leaves the length to --num_train_epochs or --max_tokens"),
    "target_loss": Range(0, 1000, above_low=True),
    "max_hours": Range(0, 87_600, above_low=True),  # ten years
    # what happens every N steps
    "logging_steps": Range(0, 10**9, above_low=True, whole_from_one=True, hint="--logging_strategy no logs nothing"),
    "eval_steps": Range(0, 10**9, above_low=True, whole_from_one=True, hint="--eval_strategy no never evaluates"),
    "save_steps": Range(
        0, 10**9, above_low=True, whole_from_one=True, hint="--save_strategy no saves at the end alone"
    ),
    "eval_delay": Range(0, 10**9),
    "eval_blocks": STEPS,
    "sample_steps": STEPS,
    "sample_tokens": Range(1, 1 << 16),
    "export_every_tokens": TOKENS,
    "save_total_limit": Range(-1, 10**6, hint="0 or -1 keeps all"),
    # processes and time
    "restarts": COUNT_OR_NONE,
    "pause_seconds": Range(0, 86_400),
    "hang_timeout_minutes": Range(0, 525_600, hint="0 waits forever"),  # a year
    "ddp_timeout": Range(1, 31_536_000),  # seconds; a year
    "dataloader_num_workers": Range(0, 256),
    "dataloader_prefetch_factor": COUNT,
    "local_rank": Range(-1, 1 << 16),
    # plan
    "num_gpus": Range(1, 1 << 16),
    "num_nodes": Range(1, 4096),
    "assumed_hfu": Range(0.0001, 1),
    "assumed_network_gbits": Range(0.001, 10**6),
    "price_per_gpu_hour": Range(0, 10**9),
    # preprocess.py and train_tokenizer.py
    "max_document_bytes": Range(1, (1 << 31) - 1),  # the largest text that a column of Arrow takes
    "max_skipped_fraction": SHARE,
    "min_characters": BYTES,
    "max_characters": BYTES,
    "near_duplicates": Range(0.01, 0.98),  # above it one band of hashes is left, which finds nothing
    "tokens_per_shard": BYTES,
    "num_slices": Range(1, 1 << 20),
    "num_workers": WORKERS,
    # generate.py
    "num_samples": COUNT,
    "num_stories": Range(1, 10**6),  # 210 MB, which are drawn in memory
    "max_new_tokens": COUNT,
    "num_beams": Range(1, 256),
    "temperature": Range(1e-6, 10**6, hint="--greedy draws nothing"),
    "top_k": Range(0, 10**9, hint="0 draws from all tokens"),
    "top_p": Range(1e-6, 1),
    "min_p": SHARE,
    "repetition_penalty": Range(0.01, 100),
    "no_repeat_ngram_size": COUNT_OR_NONE,
    "batch_size": Range(1, 1 << 16),
    # tools
    "block": Range(0, 10**15),
    "position": Range(0, 1 << 24),
    "window_tokens": BLOCK_LENGTH,
    "batch_tokens": Range(1, 1 << 30),
    "kills": COUNT,
}
