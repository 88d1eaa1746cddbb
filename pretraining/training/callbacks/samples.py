"""Text that a model in training writes: the same prompts continued again and again, and kept.

All processes continue the same prompts together, since under ZeRO-3 each token of it takes all of them to gather the
weights. What they draw is their own: the random state of the training is put back.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.run import ObservabilityArguments
from pretraining.errors import UserError
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.distributed.collectives import all_ranks_failed, is_main_process
from pretraining.training.model.tiling import without_tiling
from pretraining.training.trainer.trainer import PretrainingTrainer

SHOWN_CHARACTERS = 160  # of a sample in the log; metrics.jsonl has all of it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A text and its ids, BOS and all that training puts before a document among them."""

    text: str
    ids: list[int]


def encode_prompts(
    flags: ObservabilityArguments, tokenizer: PreTrainedTokenizerFast, *, num_positions: int
) -> list[Prompt]:
    """The prompts of --sample_prompts; none without --sample_steps.

    Raises:
        UserError: when one has no token, or leaves no room for --sample_tokens.
    """
    if flags.sample_steps is None:
        return []
    prompts = [Prompt(text, tokenizer(text)["input_ids"]) for text in flags.sample_prompts]
    problems = [f"--sample_prompts {prompt.text!r}: has no token; give a text" for prompt in prompts if not prompt.ids]
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    room = num_positions - len(longest.ids)
    if flags.sample_tokens > room:
        problems.append(
            f"--sample_tokens {flags.sample_tokens}: with a prompt of {len(longest.ids)} tokens "
            f"({_shown(longest.text, 40)!r}) exceeds the model's {num_positions} positions; give {max(room, 0)} or "
            "less, or a shorter prompt"
        )
    if problems:
        raise UserError(*problems)
    return prompts


class SampleCallback(TrainerCallback):
    """Continues the prompts every --sample_steps, and after the last step.

    It must stand after the fault handler, which may take a step back, and it comes before the checkpoint of its step,
    so that a run that goes on from there has its samples once.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog, prompts: Sequence[Prompt]) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._prompts = prompts
        self._flags = trainer.plan.arguments.observability

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sample if it is time."""
        step = state.global_step
        if not self._prompts or (step % (self._flags.sample_steps or 1) and step < state.max_steps):
            return
        if not self._trainer.check_finite():  # drawing from NaN is a CUDA error, which ends the process
            return
        with self._trainer.meter.pause():
            try:
                rows = _continued(self._trainer, self._prompts, num_tokens=self._flags.sample_tokens)
            except Exception as error:  # whatever it is, on one process alone or on all of them
                self._give_up(step, error)
                return
        if is_main_process():
            self._keep(step, state.max_steps, rows)

    def _give_up(self, step: int, error: Exception) -> None:
        """Go on without samples where all processes failed alike; where one did, the others wait for it in a forward.

        Raises:
            Exception: `error` then, as a crash is better than a hang.
        """
        if not all_ranks_failed(f"samples of step {step}"):
            raise error
        self._trainer.model_wrapped.empty_partition_cache()  # what was being gathered when it broke off
        self._prompts = []
        logger.warning("step %d: no samples (%s); no more are made, and the run goes on", step, error)

    def _keep(self, step: int, max_steps: int, rows: Sequence[Sequence[int]]) -> None:
        """Write and show what came; called on the first process."""
        try:
            texts = [self._continuation(prompt, row) for prompt, row in zip(self._prompts, rows, strict=True)]
            samples = [
                {"prompt": prompt.text, "continuation": text} for prompt, text in zip(self._prompts, texts, strict=True)
            ]
            self._metrics_log.write_event({"step": step, "event": "samples", "samples": samples})
            for sample in samples:
                shown = _shown(f'"{sample["prompt"]}"{sample["continuation"]}', SHOWN_CHARACTERS)
                logger.info(f"step {step:>{len(str(max_steps))}}/{max_steps}  sample  {shown}")
                self._show_in_tensorboard(step, sample)
        except Exception as error:  # what observes a run does not end it
            logger.warning("step %d: samples are lost (%s), and the run goes on", step, error)

    def _continuation(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """Decoded behind its prompt: SentencePiece drops the space before the first word of whatever it decodes."""
        tokenizer = self._trainer.processing_class
        begin = tokenizer.decode(prompt.ids, skip_special_tokens=True)
        return tokenizer.decode([*prompt.ids, *ids], skip_special_tokens=True)[len(begin) :]

    def _show_in_tensorboard(self, step: int, sample: dict[str, str]) -> None:
        for callback in self._trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.add_text(
                    f"sample/{_shown(sample['prompt'], 40)}", sample["prompt"] + sample["continuation"], step
                )


@torch.no_grad()
def _continued(trainer: PretrainingTrainer, prompts: Sequence[Prompt], *, num_tokens: int) -> list[list[int]]:
    """The ids after each prompt, EOS and what stands behind it left out; the same on every process.

    All prompts go in one batch, filled up on the left: a token of it gathers all weights once. The temperature is that
    of generate.py; its penalty of repetitions is left out, which would count the filling.
    """
    eos = trainer.processing_class.eos_token_id
    width = max(len(prompt.ids) for prompt in prompts)
    fill = [width - len(prompt.ids) for prompt in prompts]
    ids = [[eos or 0] * count + prompt.ids for count, prompt in zip(fill, prompts, strict=True)]
    mask = [[0] * count + [1] * (width - count) for count in fill]
    usual = GenerateArguments()
    config = GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=True,
        temperature=usual.temperature,
        top_p=usual.top_p,
        top_k=usual.top_k,
        eos_token_id=eos,
        pad_token_id=eos or 0,
        use_cache=True,
    )
    device = trainer.args.device
    with _in_evaluation(trainer), _own_draws(device, trainer.args.seed):
        sequences = trainer.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=config,
            synced_gpus=trainer.args.world_size > 1,  # goes on until the last process has ended, whatever each draws
        )
    rows = sequences[:, width:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


@contextmanager
def _in_evaluation(trainer: PretrainingTrainer) -> Iterator[None]:
    """Without dropout and tiles, with eager attention, and not compiled.

    Of the others, flash attention takes no filling, and what processes share needs a whole block. Compiled layers would
    be compiled anew for each length of a text.
    """
    engine, config = trainer.model_wrapped, trainer.model.config
    was_training, attention = engine.training, config._attn_implementation
    engine.eval()
    config._attn_implementation = "eager"
    try:
        with (
            without_tiling(trainer.model),
            torch.compiler.set_stance("force_eager"),
            trainer.compute_loss_context_manager(),
        ):
            yield
    finally:
        config._attn_implementation = attention
        engine.train(was_training)


@contextmanager
def _own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from this seed, the same at each step, so that samples differ by what was learned."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _shown(text: str, most: int) -> str:
    """In one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
