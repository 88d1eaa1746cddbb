"""Compare a model with the entropy of its data, where the true probabilities of documents are known.

On average no model assigns documents a higher probability than the process that generated them. A model that does has
an information leak: labels among its inputs, a split that was trained on, tokens or bytes that are not counted. A model
far above the limit has an error in training, e.g. in loss, positions or attention.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.data.encode.splits import Split
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError, raise_problems
from pretraining.evaluation.blocks import tokenizer_problems
from pretraining.evaluation.windows import BATCH_TOKENS, TextWindow, evaluate_texts
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.splits import open_split
from pretraining.training.data.text_bytes import open_text_bytes

# Chance alone puts a mean this far below the limit once in 30,000 times.
MAX_STANDARD_ERRORS = 4
ROUNDING = 1e-4  # relative error of a loss in fp32

TrueBits = Callable[[str], tuple[str, float]]  # a document's text -> its source and its true information in bits


@dataclass(frozen=True)
class DocumentBits:
    """A document: its bits under the model, EOS included, its true bits, and the bytes of its text."""

    source: str
    model_bits: float
    limit_bits: float
    num_bytes: int


@dataclass(frozen=True)
class Gap:
    """The distance of a model from the limit; `above` and its standard error are fractions of the limit."""

    num_documents: int
    bits_per_byte: float
    limit: float
    above: float
    standard_error: float

    @property
    def is_below(self) -> bool:
        """Whether the model is below the limit by more than chance and rounding."""
        return self.above < -(MAX_STANDARD_ERRORS * self.standard_error + ROUNDING)


def gap_of(documents: Sequence[DocumentBits]) -> Gap:
    """The gap over one or more documents."""
    rows = np.array([(one.model_bits, one.limit_bits, one.num_bytes) for one in documents])
    model_bits, limit_bits, num_bytes = rows.sum(axis=0).tolist()
    excess = rows[:, 0] - rows[:, 1]
    return Gap(
        num_documents=len(documents),
        bits_per_byte=model_bits / num_bytes,
        limit=limit_bits / num_bytes,
        above=model_bits / limit_bits - 1,
        standard_error=float(excess.std()) * math.sqrt(len(documents)) / limit_bits,
    )


def document_ids(mixture: Mixture, split: Split) -> Iterator[np.ndarray]:
    """Yield the ids of each complete document in the blocks of a split, from BOS to EOS.

    Raises:
        UserError: if the store has no BOS, which the first token is predicted from, or its split has no block.
    """
    rules = mixture.origin.token_rules
    if rules.bos_token_id is None:
        raise UserError(f"--dataset {mixture.names}: was made without --add_bos; rerun preprocess.py with it")
    blocks = open_split(mixture, split, BlockFields(), [0] * len(mixture.parts))
    if blocks is None:
        raise UserError(f"--split {split}: has no block in {mixture.names}; preprocess more documents")
    ids = np.concatenate([blocks[number]["input_ids"].numpy() for number in range(len(blocks))])
    starts, ends = np.flatnonzero(ids == rules.bos_token_id), np.flatnonzero(ids == rules.eos_token_id)
    for start, next_start in itertools.pairwise([*starts.tolist(), len(ids)]):
        index = int(np.searchsorted(ends, start))
        if index < len(ends) and ends[index] < next_start:  # otherwise its end is in the tail, outside the blocks
            yield ids[start : ends[index] + 1]


def document_texts(mixture: Mixture, split: Split, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of the complete documents of a split, decoded from its blocks."""
    return tokenizer.batch_decode([ids.tolist() for ids in document_ids(mixture, split)], skip_special_tokens=True)


def limit_of_split(mixture: Mixture, split: Split, tokenizer: PreTrainedTokenizerFast, *, true_bits: TrueBits) -> float:
    """The entropy of the complete documents of a split, in bits per byte of text: no model predicts them better.

    Raises:
        UserError: see `document_ids`.
    """
    texts = document_texts(mixture, split, tokenizer)
    return sum(true_bits(text)[1] for text in texts) / sum(len(text.encode()) for text in texts)


def predict_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    split: Split,
    *,
    true_bits: TrueBits,
) -> list[DocumentBits]:
    """Evaluate each document of a split separately, as tools.evaluate does.

    Raises:
        UserError: see `document_ids`; also if the blocks have another tokenizer, or the bytes of its tokens do not add
            up to those of the texts.
    """
    origin = mixture.origin
    raise_problems(tokenizer_problems(tokenizer, mixture))
    all_ids = list(document_ids(mixture, split))
    text_bytes = open_text_bytes(mixture.first.folder / "tokenizer", origin.tokenizer.canary_ids, origin.token_rules)
    if text_bytes is None:
        raise UserError(f"--dataset {mixture.names}: its tokens do not stand for fixed bytes; use another tokenizer")
    windows = [TextWindow(str(number), ids, text_bytes.of_document(ids)) for number, ids in enumerate(all_ids)]
    positions = model.config.max_position_embeddings
    sums = evaluate_texts(model, windows, window_tokens=positions, batch_tokens=BATCH_TOKENS)
    texts = document_texts(mixture, split, tokenizer)
    found = []
    for number, text in enumerate(texts):
        loss, _, _, num_bytes = sums[str(number)].tolist()
        if num_bytes != len(text.encode()):
            raise UserError(
                f"--dataset {mixture.names}: {len(text.encode())} bytes of text are counted as {num_bytes:g}; use "
                "another tokenizer"
            )
        source, limit_bits = true_bits(text)
        found.append(DocumentBits(source, loss / math.log(2), limit_bits, int(num_bytes)))
    return found
