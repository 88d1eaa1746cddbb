"""Complete prompts by sampling, greedy decoding or beam search; the same seed gives the same text in any batch."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation.batching import ActiveSequence, Request, generate_batched
from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.load_model import max_rows

MAX_COMPLETIONS = 10**6  # per start, which takes 110 bytes for each
NUM_SHOWN = 40  # characters of a prompt in a message

OnToken = Callable[[Request, str], None]  # called with the text so far, after each of its tokens


@dataclass(frozen=True)
class Completion:
    """A finished completion of a prompt.

    `tokens` are all generated ids without EOS; `log_probability` is the sum of their natural log probabilities under
    the model itself, before temperature and filters, EOS included if it ended the text. `finish_reason` is "eos",
    "length" or "stop"; the text ends before a stop text, `tokens` include it.
    """

    prompt: str
    text: str
    num_tokens: int
    tokens: list[int]
    log_probability: float
    finish_reason: str
    prompt_number: int
    sample_number: int

    @property
    def key(self) -> tuple[int, int]:
        """Prompt number and sample number."""
        return self.prompt_number, self.sample_number


def complete_prompts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, arguments: GenerateArguments
) -> Iterator[Completion]:
    """Yield the completions, prompt by prompt.

    Raises:
        UserError: see `make_requests`.
    """
    requests = make_requests(prompts, tokenizer, model.config, arguments)
    yield from in_order(requests, complete_requests(model, tokenizer, requests, arguments=arguments))


def in_order(requests: Sequence[Request], completions: Iterable[Completion]) -> Iterator[Completion]:
    """Yield the completions in the order of their requests, each as soon as those before it are finished."""
    waiting = {}
    wanted = iter(request.key for request in requests)
    key = next(wanted, None)
    for completion in completions:
        waiting[completion.key] = completion
        while key in waiting:
            yield waiting.pop(key)
            key = next(wanted, None)


def complete_requests(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[Request],
    *,
    arguments: GenerateArguments,
    on_token: OnToken | None = None,
) -> Iterator[Completion]:
    """Yield the completion of each request as soon as it is finished."""
    stopping = _StoppingCriteria(model, tokenizer, arguments, on_token)
    if not requests:
        return
    if arguments.num_beams > 1:
        sequences = beam_search(model, requests, eos_ids(model.config), arguments)
    else:
        num_positions = max(len(request.ids) for request in requests) + arguments.max_new_tokens
        num_rows = min(arguments.batch_size, len(requests), max_rows(model, num_positions))
        decoder = LlamaDecoder(model, num_rows, num_positions)
        sequences = generate_batched(decoder, requests, stopping.finish_reason, arguments)
    for sequence in sequences:
        yield stopping.completion(sequence)


class _StoppingCriteria:
    """EOS, stop texts and the maximal length, and the text of a sequence."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        arguments: GenerateArguments,
        on_token: OnToken | None,
    ) -> None:
        self._eos = eos_ids(model.config)
        self._tokenizer = tokenizer
        self._arguments = arguments
        self._on_token = on_token

    def finish_reason(self, sequence: ActiveSequence) -> str:
        """Why the sequence ends here, "" if it does not."""
        if self._on_token is not None:
            self._on_token(sequence.request, self._decode(sequence))
        if sequence.ids[-1] in self._eos:
            return "eos"
        if self._arguments.stop and self._find_stop(self._decode(sequence)) is not None:
            return "stop"
        return "length" if len(sequence.ids) >= self._arguments.max_new_tokens else ""

    def completion(self, sequence: ActiveSequence) -> Completion:
        """The finished sequence, without EOS, as text up to a stop text."""
        request, ids = sequence.request, self._without_eos(sequence)
        text = self._decode(sequence)
        return Completion(
            prompt=request.prompt,
            text=text[: self._find_stop(text)] if sequence.finish_reason == "stop" else text,
            num_tokens=len(ids),
            tokens=ids,
            log_probability=sequence.log_probability,
            finish_reason=sequence.finish_reason,
            prompt_number=request.prompt_number,
            sample_number=request.sample_number,
        )

    def _without_eos(self, sequence: ActiveSequence) -> list[int]:
        return sequence.ids[:-1] if sequence.ids[-1] in self._eos else sequence.ids

    def _decode(self, sequence: ActiveSequence) -> str:
        """Decode with the prompt: SentencePiece drops the space before the first word of whatever it decodes."""
        prompt = self._tokenizer.decode(sequence.request.ids, skip_special_tokens=True)
        ids = sequence.request.ids + self._without_eos(sequence)
        return self._tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :]

    def _find_stop(self, text: str) -> int | None:
        """Offset of the first stop text, None if there is none."""
        offsets = [text.find(stop) for stop in self._arguments.stop or ()]
        return min((offset for offset in offsets if offset >= 0), default=None)


def beam_search(
    model: LlamaForCausalLM, requests: Sequence[Request], eos: Collection[int], arguments: GenerateArguments
) -> Iterator[ActiveSequence]:
    """Yield the most likely sequences of each prompt, the best first, by the beam search of transformers."""
    config = GenerationConfig(
        max_new_tokens=arguments.max_new_tokens,
        num_beams=arguments.num_beams,
        num_return_sequences=arguments.num_samples,
        repetition_penalty=arguments.repetition_penalty,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        do_sample=False,
        eos_token_id=sorted(eos) or None,
        pad_token_id=min(eos, default=0),
    )
    for _, group in itertools.groupby(requests, key=lambda request: request.prompt_number):
        wanted = list(group)
        ids = torch.tensor([wanted[0].ids], device=model.device)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        for request in wanted:
            yield _scored_sequence(model, request, found[request.sample_number].tolist()[ids.shape[1] :], eos)


@torch.inference_mode()
def _scored_sequence(model: LlamaForCausalLM, request: Request, ids: list[int], eos: Collection[int]) -> ActiveSequence:
    """The sequence up to EOS, without the padding after it, and its log probability."""
    end = next((offset for offset, token in enumerate(ids) if token in eos), None)
    ids = ids if end is None else ids[: end + 1]
    first = len(request.ids)
    inputs = torch.tensor([request.ids + ids], device=model.device)
    logits = model(inputs).logits[0, first - 1 : -1].float()
    log_probability = logits.log_softmax(-1).gather(-1, inputs[0, first:, None].to(logits.device)).sum()
    return ActiveSequence(request, [], ids, float(log_probability), "length" if end is None else "eos")


def make_requests(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    config: LlamaConfig,
    arguments: GenerateArguments,
    *,
    first_number: int = 0,
) -> list[Request]:
    """The requested completions, prompt by prompt.

    Raises:
        UserError: if a prompt has no token or an unknown one, or is too long for --max_new_tokens.
    """
    if len(prompts) * arguments.num_samples > MAX_COMPLETIONS:
        raise UserError(
            f"--num_samples {arguments.num_samples}: of {len(prompts):,} prompts makes more than "
            f"{MAX_COMPLETIONS:,} completions; use fewer, and several starts with different --seed"
        )
    all_ids = tokenizer(list(prompts))["input_ids"]
    _check_ids(prompts, all_ids, config)
    longest = max(range(len(prompts)), key=lambda number: len(all_ids[number]))
    max_new_tokens = config.max_position_embeddings - len(all_ids[longest])
    prompt = f"a prompt of {len(all_ids[longest])} tokens ({prompts[longest][:NUM_SHOWN]!r})"
    if max_new_tokens < 1:
        raise UserError(f"--prompt: {prompt} fills the model's {config.max_position_embeddings} positions; shorten it")
    if arguments.max_new_tokens > max_new_tokens:
        raise UserError(
            f"--max_new_tokens {arguments.max_new_tokens}: with {prompt} exceeds the model's "
            f"{config.max_position_embeddings} positions; use {max_new_tokens} or less, or a shorter prompt"
        )
    return [
        Request(prompt, ids, number, sample)
        for number, (prompt, ids) in enumerate(zip(prompts, all_ids, strict=True), start=first_number)
        for sample in range(arguments.num_samples)
    ]


def _check_ids(prompts: Sequence[str], all_ids: Sequence[Sequence[int]], config: LlamaConfig) -> None:
    for prompt, ids in zip(prompts, all_ids, strict=True):
        if not prompt and not ids:
            raise UserError("--prompt: is empty, and the model has no BOS to start from; pass at least one word")
        if not ids:
            raise UserError(f"--prompt {prompt[:NUM_SHOWN]!r}: has no token; pass a text")
        if max(ids) >= config.vocab_size:
            raise UserError(
                f"--model: its tokenizer gives id {max(ids)} for {prompt[:NUM_SHOWN]!r}, and the model has "
                f"{config.vocab_size:,} tokens; copy the tokenizer that it was trained with"
            )


def eos_ids(config: LlamaConfig | GenerationConfig | None) -> set[int]:
    """Ids that end a completion; some models have several, or others in their generation config."""
    ids = None if config is None else config.eos_token_id
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
