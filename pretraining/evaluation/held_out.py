"""Evaluate a model on the documents of any files, encoded as in training.

BOS precedes a document if the model's tokenizer adds it to a prompt; EOS follows it and is predicted like any other
token. Without BOS, the first token of a document has no context: neither it nor its bytes count, as at the beginning
of a block in training.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader, ordered_parallel_map
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.documents import ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import CleaningRules, TextFilter
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import cut_slices
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, load_document_tokenizer
from pretraining.errors import UserError
from pretraining.evaluation.windows import BATCH_TOKENS, TextWindow, evaluate_texts
from pretraining.generation.load_model import encodes_to
from pretraining.training.data.text_bytes import open_text_bytes
from pretraining.training.metrics.evaluation import metrics_of_sums

logger = logging.getLogger(__name__)

DEFAULT_READING_OPTIONS = ReadingOptions(max_document_bytes=6 << 20)
NUM_WORKERS = 2  # encoding threads: faster than any model evaluates
Metrics = dict[str, float]


@dataclass(frozen=True)
class HeldOutMetrics:
    """Loss, perplexity, accuracy, bits per byte and their counts, in total and by source.

    `num_bytes` of the `num_text_bytes` of the documents were predicted.
    """

    total: Metrics
    sources: dict[str, Metrics]


class HeldOutDocuments:
    """The documents of `files` as texts; iterating counts documents and bytes by source, skipped lines by reason."""

    def __init__(self, files: Sequence[InputFile], options: ReadingOptions, tokenizer: DocumentTokenizer) -> None:
        self._files = files
        self._options = options
        self._encoder = BatchEncoder(
            DocumentReader(options, TextFilter(CleaningRules())),
            splits=SplitAssigner((1, 0, 0), seed=0),  # the split is not used
            tokenizer=tokenizer,
        )
        self._text_bytes = open_text_bytes(tokenizer.folder, tokenizer.identity().canary_ids, tokenizer.rules)
        self.num_documents: Counter[str] = Counter()
        self.num_text_bytes: Counter[str] = Counter()
        self.skipped_lines: Counter[str] = Counter()

    def __iter__(self) -> Iterator[TextWindow]:
        """Yield each document in the order of the files."""
        (ranges,) = cut_slices(self._files, 1)
        batches = read_batches(self._files, ranges, None, self._options)
        for batch in ordered_parallel_map(self._encoder.encode, batches, num_workers=NUM_WORKERS):
            self._count(batch)
            ends = np.cumsum(batch.lengths)
            for source, start, end in zip(batch.rows.sources, ends - batch.lengths, ends, strict=True):
                yield self._text(source, batch.ids[start:end].astype(np.int64))

    def _text(self, source: str, ids: np.ndarray) -> TextWindow:
        known = self._text_bytes
        return TextWindow(source, ids, np.zeros_like(ids) if known is None else known.of_document(ids))

    def _count(self, batch: EncodedBatch) -> None:
        self.skipped_lines.update(line.reason for line in batch.skipped)
        self.num_documents.update(batch.rows.sources)
        for source, num_bytes in zip(batch.rows.sources, batch.rows.num_text_bytes.tolist(), strict=True):
            self.num_text_bytes[source] += num_bytes


def evaluate_files(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    files: Sequence[InputFile],
    *,
    options: ReadingOptions = DEFAULT_READING_OPTIONS,
    window_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> HeldOutMetrics:
    """The model's metrics on every document of `files` separately; the default window is all of its positions.

    Raises:
        UserError: if no document is found, an input file is damaged, or the model has fewer positions.
    """
    positions = model.config.max_position_embeddings
    if window_tokens is not None and window_tokens > positions:
        raise UserError(f"--window_tokens {window_tokens}: the model has {positions} positions; use at most that many")
    documents = HeldOutDocuments(files, options, tokenizer_of_model(tokenizer))
    found = evaluate_texts(model, documents, window_tokens=window_tokens or positions, batch_tokens=batch_tokens)
    if not found:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in documents.skipped_lines.items()) or "no line"
        raise UserError(
            f"--data_files: no line is a document ({reasons}); pass other files, with the text in field "
            f"{options.text_field!r}{'' if options is DEFAULT_READING_OPTIONS else ', or set --text_field'}"
        )
    for reason, count in documents.skipped_lines.items():
        logger.warning("held-out files: %s lines skipped: %s", f"{count:,}", reason.replace("_", " "))
    return HeldOutMetrics(
        total=_with_counts(np.sum(list(found.values()), axis=0), documents, list(found)),
        sources={source: _with_counts(found[source], documents, [source]) for source in sorted(found)},
    )


def _with_counts(sums: np.ndarray, documents: HeldOutDocuments, sources: Sequence[str]) -> Metrics:
    counts = {
        "num_documents": sum(documents.num_documents[source] for source in sources),
        "num_bytes": int(sums[3]),
        "num_text_bytes": sum(documents.num_text_bytes[source] for source in sources),
    }
    return {**metrics_of_sums(sums.tolist()), **counts}


def tokenizer_of_model(tokenizer: PreTrainedTokenizerFast) -> DocumentTokenizer:
    """The document tokenizer of a model, from the tokenizer it was loaded with.

    Raises:
        UserError: if the tokenizer has no EOS, or its file gives other ids than `tokenizer`.
    """
    location = tokenizer.name_or_path
    first_ids = tokenizer("a")["input_ids"][:1]
    add_bos = tokenizer.bos_token_id is not None and first_ids == [tokenizer.bos_token_id]
    documents = load_document_tokenizer(location, add_bos=add_bos, flag="--model")
    identity = documents.identity()
    if not encodes_to(tokenizer, identity.canary_text, identity.canary_ids):
        raise UserError(
            f"--model {location}: transformers gives other ids than its tokenizer.json; install the versions of "
            "requirements.lock"
        )
    return documents
