"""Beam search, which is transformers' own: the most likely texts as whole texts, nothing drawn."""

import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.batching import ActiveSequence, Request


def beam_search(
    model: LlamaForCausalLM, jobs: Sequence[Request], eos: Collection[int], arguments: GenerateArguments
) -> Iterator[ActiveSequence]:
    """The best texts of each prompt, the best first; of one prompt's jobs each has its place among them."""
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
    for _, group in itertools.groupby(jobs, key=lambda job: job.prompt_number):
        wanted = list(group)
        ids = torch.tensor([wanted[0].ids], device=model.device)
        sequences = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        for job in wanted:
            yield _text(model, job, sequences[job.sample_number].tolist()[ids.shape[1] :], eos)


@torch.inference_mode()
def _text(model: LlamaForCausalLM, job: Request, ids: list[int], eos: Collection[int]) -> ActiveSequence:
    """The text up to EOS, with its probability; what stands behind EOS fills it up to the longest of its prompt."""
    end = next((place for place, token in enumerate(ids) if token in eos), None)
    ids = ids if end is None else ids[: end + 1]
    begin = len(job.ids)
    whole = torch.tensor([job.ids + ids], device=model.device)
    logits = model(whole).logits[0, begin - 1 : -1].float()
    chances = logits.log_softmax(-1).gather(-1, whole[0, begin:, None].to(logits.device))
    return ActiveSequence(job, [], ids, float(chances.sum()), "length" if end is None else "eos")
