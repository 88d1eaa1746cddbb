"""Sample text during training: complete the same prompts again and again, and log the completions.

Every process completes the same prompts, since under ZeRO-3 all of them have to gather the weights for each token. The
random state of the training is restored afterwards.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, TrainerControl, TrainerState

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.run import ObservabilityArguments
from pretraining.errors import raise_problems
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.distributed.collectives import all_ranks_failed, is_main_process
from pretraining.training.model.tiling import without_tiling
from pretraining.training.trainer.hf_internals import RunCallback, eager_attention
from pretraining.training.trainer.trainer import PretrainingTrainer

MAX_SHOWN_CHARACTERS = 160  # of a sample in the log; metrics.jsonl has all of it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A text and its token ids, with BOS if training puts one before a document."""

    text: str
    ids: list[int]


def encode_prompts(
    flags: ObservabilityArguments, tokenizer: PreTrainedTokenizerFast, *, num_positions: int
) -> list[Prompt]:
    """The prompts of --sample_prompts; none without --sample_steps.

    Raises:
        UserError: when a prompt has no token, or is too long for --sample_tokens.
    """
    if flags.sample_steps is None:
        return []
    prompts = [Prompt(text, tokenizer(text)["input_ids"]) for text in flags.sample_prompts]
    problems = [f"--sample_prompts {prompt.text!r}: has no token; pass a text" for prompt in prompts if not prompt.ids]
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    free = num_positions - len(longest.ids)
    if flags.sample_tokens > free:
        problems.append(
            f"--sample_tokens {flags.sample_tokens}: with a prompt of {len(longest.ids)} tokens "
            f"({_shortened(longest.text, 40)!r}) exceeds the model's {num_positions} positions; use {max(free, 0)} or "
            "less, or a shorter prompt"
        )
    raise_problems(problems)
    return prompts


class SampleCallback(RunCallback):
    """Completes the prompts every --sample_steps, and after the last step."""

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog, prompts: Sequence[Prompt]) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._prompts = prompts
        self._flags = trainer.run_config.arguments.observability

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Sample if it is due."""
        step = state.global_step
        if not self._prompts or (step % (self._flags.sample_steps or 1) and step < state.max_steps):
            return
        if not self._trainer.check_finite():  # sampling from NaN is a CUDA error, which ends the process
            return
        with self._trainer.meter.pause():
            try:
                rows = _generate(self._trainer, self._prompts, num_tokens=self._flags.sample_tokens)
            except Exception as error:  # whatever it is, on one process or on all of them
                continue_if_all_failed(self._trainer, f"samples of step {step}", error)
                self._prompts = []
                logger.warning("step %d: sampling failed (%s) and is disabled; training continues", step, error)
                return
        if is_main_process():
            self._log(step, state.max_steps, rows)

    def _log(self, step: int, max_steps: int, rows: Sequence[Sequence[int]]) -> None:
        """Write the completions to metrics.jsonl, the log and TensorBoard; called on the main process."""
        try:
            samples = [
                {"prompt": prompt.text, "continuation": self._completion(prompt, row)}
                for prompt, row in zip(self._prompts, rows, strict=True)
            ]
            self._metrics_log.write_event({"step": step, "event": "samples", "samples": samples})
            for sample in samples:
                shown = _shortened(f'"{sample["prompt"]}"{sample["continuation"]}', MAX_SHOWN_CHARACTERS)
                logger.info(f"step {step:>{len(str(max_steps))}}/{max_steps}  sample  {shown}")
                self._add_to_tensorboard(step, sample)
        except Exception as error:  # a log does not end a run
            logger.warning("step %d: samples could not be logged (%s); training continues", step, error)

    def _completion(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """Decode with the prompt: SentencePiece drops the space before the first word of a text."""
        tokenizer = self._trainer.processing_class
        start = tokenizer.decode(prompt.ids, skip_special_tokens=True)
        return tokenizer.decode([*prompt.ids, *ids], skip_special_tokens=True)[len(start) :]

    def _add_to_tensorboard(self, step: int, sample: dict[str, str]) -> None:
        tag, text = f"sample/{_shortened(sample['prompt'], 40)}", sample["prompt"] + sample["continuation"]
        for callback in self._trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.add_text(tag, text, step)


def continue_if_all_failed(trainer: PretrainingTrainer, what: str, error: Exception) -> None:
    """Prepare to train again after forwards that failed on all processes; if one failed, the others wait in a forward.

    Raises:
        Exception: `error` in that case, as a crash is better than a hang.
    """
    if not all_ranks_failed(what):
        raise error
    trainer.model_wrapped.empty_partition_cache()  # what was being gathered when it failed


def _generate(trainer: PretrainingTrainer, prompts: Sequence[Prompt], *, num_tokens: int) -> list[list[int]]:
    """The ids after each prompt, up to EOS and without it; the same on every process.

    All prompts are one batch, padded on the left: each token gathers all weights once. The temperature is that of
    generate.py; its repetition penalty is not applied, as it would count the padding.
    """
    eos = trainer.processing_class.eos_token_id
    width = max(len(prompt.ids) for prompt in prompts)
    padding = [width - len(prompt.ids) for prompt in prompts]
    ids = [[eos or 0] * count + prompt.ids for count, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * count + [1] * (width - count) for count in padding]
    defaults = GenerateArguments()
    config = GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=True,
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
        eos_token_id=eos,
        pad_token_id=eos or 0,
        use_cache=True,
    )
    device = trainer.args.device
    # Flash attention takes no padding, and sequence parallelism and tiles need whole blocks.
    with (
        trainer.eager_evaluation(),
        eager_attention(trainer.model),
        without_tiling(trainer.model),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(trainer.args.seed)  # the same at each step: completions differ only by what was learned
        sequences = trainer.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=config,
            synced_gpus=trainer.args.world_size > 1,  # continues until the last process has finished
        )
    rows = sequences[:, width:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


def _shortened(text: str, max_characters: int) -> str:
    """The text in one line, cut to `max_characters`."""
    line = " ".join(text.split())
    return line if len(line) <= max_characters else line[: max_characters - 3] + "..."
