"""Continue prompts with a model: drawn, greedy or by beam search, the same text for the same seed in any batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation.batching import ActiveSequence, Request, generate_batched
from pretraining.generation.beam_search import beam_search
from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.load_weights import rows_that_fit

MAX_CONTINUATIONS = 10**6  # of one start, which keeps 110 bytes for each
NUM_SHOWN = 40  # characters of a prompt in a message

Watch = Callable[[Request, str], None]  # is told a text so far, after each of its tokens


@dataclass(frozen=True)
class Completion:
    """One continuation of one prompt.

    `tokens` are all that were drawn, without EOS; `log_probability` is the sum of their natural log probabilities under
    the model itself, before temperature and filters, that of EOS included where it ended by it. `finish_reason` is
    "eos", "length" or "stop"; the text ends before a stop text, of which the tokens are still there.
    """

    prompt: str
    text: str
    num_tokens: int
    tokens: list[int]
    log_probability: float
    finish_reason: str
    prompt_number: int
    sample_number: int


def continue_prompts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, arguments: GenerateArguments
) -> Iterator[Completion]:
    """The continuations of each prompt, prompt by prompt.

    Raises:
        UserError: as `make_jobs` does.
    """
    jobs = make_jobs(prompts, tokenizer, model.config, arguments)
    yield from in_order(jobs, continue_jobs(model, tokenizer, jobs, arguments=arguments))


def in_order(jobs: Sequence[Request], continuations: Iterable[Completion]) -> Iterator[Completion]:
    """The continuations in the order of their jobs, each as soon as those before it are there."""
    waiting = {}
    wanted = iter((job.prompt_number, job.sample_number) for job in jobs)
    key = next(wanted, None)
    for continuation in continuations:
        waiting[continuation.prompt_number, continuation.sample_number] = continuation
        while key in waiting:
            yield waiting.pop(key)
            key = next(wanted, None)


def continue_jobs(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    jobs: Sequence[Request],
    *,
    arguments: GenerateArguments,
    watch: Watch | None = None,
) -> Iterator[Completion]:
    """The continuation of each job as soon as it has ended."""
    ending = _Ending(model, tokenizer, arguments, watch)
    if not jobs:
        return
    if arguments.num_beams > 1:
        found = beam_search(model, jobs, eos_ids(model), arguments)
    else:
        num_positions = max(len(job.ids) for job in jobs) + arguments.max_new_tokens
        num_rows = min(arguments.batch_size, len(jobs), rows_that_fit(model, num_positions))
        found = generate_batched(LlamaDecoder(model, num_rows, num_positions), jobs, ending.reason, arguments)
    for text in found:
        yield ending.continuation(text)


class _Ending:
    """Where a text ends."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        arguments: GenerateArguments,
        watch: Watch | None,
    ) -> None:
        self._eos = eos_ids(model)
        self._tokenizer = tokenizer
        self._arguments = arguments
        self._watch = watch

    def reason(self, text: ActiveSequence) -> str:
        """Why it ends here, "" if it goes on."""
        if self._watch is not None:
            self._watch(text.job, self._read(text))
        if text.ids[-1] in self._eos:
            return "eos"
        if self._arguments.stop and self._stop_at(self._read(text)) is not None:
            return "stop"
        return "length" if len(text.ids) >= self._arguments.max_new_tokens else ""

    def continuation(self, text: ActiveSequence) -> Completion:
        """The text as it is given out."""
        job, ids = text.job, self._without_eos(text)
        shown = self._read(text)
        end = self._stop_at(shown) if text.finish_reason == "stop" else None
        return Completion(
            prompt=job.prompt,
            text=shown[:end],
            num_tokens=len(ids),
            tokens=ids,
            log_probability=text.log_probability,
            finish_reason=text.finish_reason,
            prompt_number=job.prompt_number,
            sample_number=job.sample_number,
        )

    def _without_eos(self, text: ActiveSequence) -> list[int]:
        return text.ids[:-1] if text.ids[-1] in self._eos else text.ids

    def _read(self, text: ActiveSequence) -> str:
        """Decoded behind its prompt: SentencePiece drops the space before the first word of whatever it decodes."""
        begin = self._tokenizer.decode(text.job.ids, skip_special_tokens=True)
        whole = self._tokenizer.decode(text.job.ids + self._without_eos(text), skip_special_tokens=True)
        return whole[len(begin) :]

    def _stop_at(self, shown: str) -> int | None:
        """Where the first stop text begins, None where there is none."""
        places = [shown.find(stop) for stop in self._arguments.stop or ()]
        return min((place for place in places if place >= 0), default=None)


def make_jobs(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    config: LlamaConfig,
    arguments: GenerateArguments,
    *,
    first_number: int = 0,
) -> list[Request]:
    """The continuations that are wanted, prompt by prompt.

    Raises:
        UserError: when a prompt has no token, has some that the model does not know, or leaves no room for
            --max_new_tokens.
    """
    if len(prompts) * arguments.num_samples > MAX_CONTINUATIONS:
        raise UserError(
            f"--num_samples {arguments.num_samples}: of {len(prompts):,} prompts makes more than "
            f"{MAX_CONTINUATIONS:,} continuations; use less, and several starts with another --seed"
        )
    all_ids = tokenizer(list(prompts))["input_ids"]
    _check_ids(prompts, all_ids, config)
    longest = max(range(len(prompts)), key=lambda number: len(all_ids[number]))
    room = config.max_position_embeddings - len(all_ids[longest])
    place = f"a prompt of {len(all_ids[longest])} tokens ({prompts[longest][:NUM_SHOWN]!r})"
    if room < 1:
        raise UserError(f"--prompt: {place} fills the model's {config.max_position_embeddings} positions; shorten it")
    if arguments.max_new_tokens > room:
        raise UserError(
            f"--max_new_tokens {arguments.max_new_tokens}: with {place} exceeds the model's "
            f"{config.max_position_embeddings} positions; give {room} or less, or a shorter prompt"
        )
    return [
        Request(prompt, ids, number, sample)
        for number, (prompt, ids) in enumerate(zip(prompts, all_ids, strict=True), start=first_number)
        for sample in range(arguments.num_samples)
    ]


def _check_ids(prompts: Sequence[str], all_ids: Sequence[Sequence[int]], config: LlamaConfig) -> None:
    for prompt, ids in zip(prompts, all_ids, strict=True):
        if not prompt and not ids:
            raise UserError("--prompt: is empty, and the model has no BOS to begin with; give at least one word")
        if not ids:
            raise UserError(f"--prompt {prompt[:NUM_SHOWN]!r}: has no token; give a text")
        if max(ids) >= config.vocab_size:
            raise UserError(
                f"--model: its tokenizer gives {max(ids)} for {prompt[:NUM_SHOWN]!r}, and the model has "
                f"{config.vocab_size:,} tokens; copy the tokenizer of its training there"
            )


def eos_ids(model: LlamaForCausalLM) -> set[int]:
    """Ids that end a text; some models have several."""
    ids = model.config.eos_token_id
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
