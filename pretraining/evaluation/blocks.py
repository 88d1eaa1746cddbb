"""Evaluate a finished model on a split of a block store, with the metrics that its run would have logged."""

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.data.encode.splits import Split
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError, raise_problems
from pretraining.evaluation.held_out import HeldOutMetrics
from pretraining.generation.load_model import encodes_to
from pretraining.training.data.batch import collate_targets
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.splits import open_split, sources_of
from pretraining.training.data.text_bytes import open_text_bytes
from pretraining.training.metrics.evaluation import EvaluationBlocks, evaluate_blocks, losses_by


def evaluate_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    split: Split,
    *,
    fields: BlockFields,
    batch_tokens: int,
) -> HeldOutMetrics:
    """Metrics of each block once, in total and by source.

    Raises:
        UserError: if the split has no block, or its blocks do not match this model.
    """
    names, sources = sources_of(mixture)
    _check(model, tokenizer, mixture)
    blocks = open_split(mixture, split, fields, sources)
    if blocks is None:
        raise UserError(f"--split {split}: has no block in {mixture.names}; pass another")
    origin = mixture.origin
    text_bytes = open_text_bytes(mixture.first.folder / "tokenizer", origin.tokenizer.canary_ids, origin.token_rules)
    size = max(1, batch_tokens // origin.block_length)
    batches = DataLoader(
        EvaluationBlocks(blocks, text_bytes=text_bytes, multiple=size), batch_size=size, collate_fn=collate_targets
    )
    model.config.use_cache = False  # a cache ignores restarted positions, which separate documents
    figures = evaluate_blocks(losses_by(model), batches, sources=names, device=model.device)
    total = {name: value for name, value in figures.items() if "/" not in name}
    by_source = {
        source: {name: figures[f"{name}/{source}"] for name in total if f"{name}/{source}" in figures}
        for source in names
    }
    found = {source: values for source, values in by_source.items() if values}
    return HeldOutMetrics(total=total, sources=found or {names[0]: total})


def tokenizer_problems(tokenizer: PreTrainedTokenizerFast, mixture: Mixture) -> list[str]:
    """The message for blocks of another tokenizer, or no message."""
    canary = mixture.origin.tokenizer
    if encodes_to(tokenizer, canary.canary_text, canary.canary_ids):
        return []
    return [f"--dataset {mixture.names}: was made with another tokenizer than the model's; rerun preprocess.py"]


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, mixture: Mixture) -> None:
    origin, positions = mixture.origin, model.config.max_position_embeddings
    problems = tokenizer_problems(tokenizer, mixture)
    if origin.block_length > positions:
        problems.append(
            f"--dataset {mixture.names}: blocks of {origin.block_length:,} tokens are longer than the model's "
            f"{positions:,} positions; rerun preprocess.py with a smaller --block_length"
        )
    raise_problems(problems)
