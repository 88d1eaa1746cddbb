"""A model beside the limit of what can be learned, where the documents' true probabilities are known.

On average no model finds documents likelier than what drew them does. One that finds them so has seen the answers:
labels that are inputs, a split that was trained on, tokens or bytes that are not counted. One that stays far behind has
not learned what was there, from a wrong loss, positions or attention, say.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.data.encode.splits import Split
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.evaluation.windows import TextWindow, evaluate_passages
from pretraining.generation.load_model import gives_ids
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.splits import open_split
from pretraining.training.data.text_bytes import open_text_bytes

# Chance alone, of stories that differ in how far the model is off, brings a mean so far below once in 30,000 times.
MOST_STANDARD_ERRORS = 4
ROUNDING = 1e-4  # of the limit, by a loss in fp32

Truth = Callable[[str], tuple[str, float]]  # a document's text -> its source, and its true information in bits


@dataclass(frozen=True)
class Predicted:
    """A document: bits that the model needs to say it, EOS included, bits that it truly has, and its bytes of text."""

    source: str
    model_bits: float
    limit_bits: float
    num_bytes: int


@dataclass(frozen=True)
class Gap:
    """How far a model is from the limit on some documents; `above` and its standard error are shares of the limit."""

    num_documents: int
    bits_per_byte: float
    limit: float
    above: float
    standard_error: float

    @property
    def is_below(self) -> bool:
        """Whether the model is below the limit, by more than chance and rounding."""
        return self.above < -(MOST_STANDARD_ERRORS * self.standard_error + ROUNDING)


def gap_of(documents: Sequence[Predicted]) -> Gap:
    """Over all of `documents`, of which there is one or more."""
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
    """The ids of each whole document in the blocks of a split, from BOS to EOS.

    Raises:
        UserError: when the store was made without BOS, which alone tells where the first token is predicted from, or
            its split has no block.
    """
    rules = mixture.origin.token_rules
    if rules.bos_token_id is None:
        raise UserError(f"--dataset {mixture.names}: was made without --add_bos; preprocess again with it")
    blocks = open_split(mixture, split, BlockFields(), [0] * len(mixture.parts))
    if blocks is None:
        raise UserError(f"--split {split}: has no block in {mixture.names}; preprocess more documents")
    ids = np.concatenate([blocks[number]["input_ids"].numpy() for number in range(len(blocks))])
    begins, ends = np.flatnonzero(ids == rules.bos_token_id), np.flatnonzero(ids == rules.eos_token_id)
    for begin, next_begin in itertools.pairwise([*begins.tolist(), len(ids)]):
        place = int(np.searchsorted(ends, begin))
        if place < len(ends) and ends[place] < next_begin:  # otherwise its end is in the tail that fills no block
            yield ids[begin : ends[place] + 1]


def document_texts(mixture: Mixture, split: Split, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of the whole documents of a split, read back from its blocks."""
    return tokenizer.batch_decode([ids.tolist() for ids in document_ids(mixture, split)], skip_special_tokens=True)


def limit_of_split(mixture: Mixture, split: Split, tokenizer: PreTrainedTokenizerFast, *, truth: Truth) -> float:
    """The entropy of the whole documents of a split, in bits per byte of their text: no model predicts them better.

    Raises:
        UserError: as `document_ids` does.
    """
    texts = document_texts(mixture, split, tokenizer)
    return sum(truth(text)[1] for text in texts) / sum(len(text.encode()) for text in texts)


def predict_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    mixture: Mixture,
    split: Split,
    *,
    truth: Truth,
    batch_tokens: int = 8192,
) -> list[Predicted]:
    """Each document of a split by itself, as tools.evaluate predicts it.

    Raises:
        UserError: as `document_ids` does, and when the blocks are of another tokenizer, or the bytes of its tokens do
            not add up to the texts'.
    """
    origin = mixture.origin
    if not gives_ids(tokenizer, origin.tokenizer.canary_text, origin.tokenizer.canary_ids):
        raise UserError(
            f"--dataset {mixture.names}: was made with another tokenizer than the model's; preprocess again"
        )
    all_ids = list(document_ids(mixture, split))
    text_bytes = open_text_bytes(mixture.first.folder / "tokenizer", origin.tokenizer.canary_ids, origin.token_rules)
    if text_bytes is None:
        raise UserError(f"--dataset {mixture.names}: its tokenizer's tokens have no bytes of their own; use another")
    passages = [TextWindow(str(number), ids, text_bytes.of_document(ids)) for number, ids in enumerate(all_ids)]
    positions = model.config.max_position_embeddings
    sums = evaluate_passages(model, passages, window_tokens=positions, batch_tokens=batch_tokens)
    texts = document_texts(mixture, split, tokenizer)
    found = []
    for number, text in enumerate(texts):
        loss, _, _, num_bytes = sums[str(number)].tolist()
        if num_bytes != len(text.encode()):
            raise UserError(f"--dataset {mixture.names}: {len(text.encode())} bytes of text, counted as {num_bytes:g}")
        source, limit_bits = truth(text)
        found.append(Predicted(source, loss / math.log(2), limit_bits, int(num_bytes)))
    return found
