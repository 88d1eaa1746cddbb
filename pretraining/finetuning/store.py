"""A block store of conversations, in which each token is marked as answer or not.

Each conversation is in one block, uncut. Conversations without an answer, longer than a block, or with the name of a
control token in them, are skipped: counted, and listed in skipped.jsonl.
"""

import contextlib
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonlines
import numpy as np
from transformers import PreTrainedTokenizerFast

from pretraining.cli.logs import counted
from pretraining.data.build.assemble import SKIPPED_NAME, build_manifest, copy_tokenizer, finish_store, split_contents
from pretraining.data.build.partial_store import finished_store
from pretraining.data.build.progress import SplitProgress
from pretraining.data.build.slice_writer import SplitWriter
from pretraining.data.encode.encoded import DocumentMetadata
from pretraining.data.encode.splits import SPLITS, Split, SplitAssigner
from pretraining.data.input.documents import SHOWN_BYTES
from pretraining.data.store.manifest import MANIFEST_NAME, Manifest, StoreSpec, read_manifest
from pretraining.data.store.packing import BestFitPacker, DocumentSegments
from pretraining.data.store.shards import ANSWER_BIT, ShardThreads, ShardWriter, block_schema, document_table
from pretraining.errors import UserError
from pretraining.finetuning.chat_template import EncodedConversation, encode_conversations
from pretraining.finetuning.conversations import Conversation
from pretraining.generation.chat_template import find_control_token
from pretraining.runs.run_folder import PARTIAL_BLOCKS_SUFFIX
from pretraining.system.files import fsync
from pretraining.system.locks import wait_for_lock
from pretraining.training.model.tokenizer import tokenizer_for_model

CONVERSATIONS_AT_ONCE = 1000

logger = logging.getLogger(__name__)


def make_conversation_store(
    store: Path, origin: StoreSpec, conversations: Iterable[Conversation], *, tokenizer_dir: Path, max_length: int
) -> None:
    """Write the store unless it exists; the first process of a machine writes it, the others wait.

    Raises:
        UserError: when no conversation can be used, or an existing store was written from other conversations.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(store.with_name(store.name + ".lock")):
        if (store / MANIFEST_NAME).is_file():
            finished_store(store, origin)
            return
        partial = store.with_name(store.name + PARTIAL_BLOCKS_SUFFIX)
        shutil.rmtree(partial, ignore_errors=True)
        copy_tokenizer(tokenizer_dir, partial / "tokenizer")
        tokenizer = tokenizer_for_model(partial, origin, max_length=max_length)
        with contextlib.closing(ShardThreads()) as threads:
            writer = _StoreWriter(partial, origin, tokenizer, threads)
            for batch in _batches(conversations):
                writer.add(batch)
            manifest = writer.finish()
        _check_not_empty(manifest)
        finish_store(partial, manifest)
        partial.replace(store)
        fsync(store.parent)


class _StoreWriter:
    """Takes conversations in order."""

    def __init__(
        self, folder: Path, origin: StoreSpec, tokenizer: PreTrainedTokenizerFast, threads: ShardThreads
    ) -> None:
        self._folder = folder
        self._origin = origin
        self._tokenizer = tokenizer
        self._assigner = SplitAssigner(origin.split_weights, seed=origin.seed)
        self._skipped: Counter[str] = Counter()
        self._skipped_lines = jsonlines.open(folder / SKIPPED_NAME, "w")
        self._num_documents = 0
        self._mappings: Counter[str] = Counter()
        eos = origin.token_rules.eos_token_id
        length = origin.block_length
        self._packers = {split: BestFitPacker(block_length=length, dtype="uint32", padding_id=eos) for split in SPLITS}
        schema = block_schema(length, origin.dtype, has_answers=True)
        self._splits = {split: SplitWriter(folder, split, 0, self._packers[split], schema, threads) for split in SPLITS}
        self._progress = {split: SplitProgress() for split in SPLITS}
        self._documents = ShardWriter(folder, "documents-00000.parquet", threads)

    def add(self, batch: Sequence[Conversation]) -> None:
        """Append conversations of one file."""
        kept = self._kept(batch)
        rows = self._rows([conversation for conversation, _ in kept])
        for number, ((_, tokens), split) in enumerate(zip(kept, rows.splits, strict=True), self._num_documents):
            self._add_tokens(tokens, SPLITS[split], number)
        if kept:
            numbers = self._num_documents + np.arange(len(kept))
            lengths = np.array([len(tokens.ids) for _, tokens in kept])
            self._documents.write(partial(document_table, [rows], [batch[0].file], numbers, lengths))
            self._num_documents += len(kept)

    def _rows(self, batch: Sequence[Conversation]) -> DocumentMetadata:
        num_text_bytes = [sum(len(message["content"].encode()) for message in one.messages) for one in batch]
        return DocumentMetadata(
            sources=[one.source for one in batch],
            lines=np.array([one.line for one in batch], np.int64),
            byte_offsets=np.array([one.byte_offset for one in batch], np.int64),
            num_text_bytes=np.array(num_text_bytes, np.int64),
            splits=self._assigner.numbers_of(self._assigner.digests([one.text for one in batch])),
        )

    def _kept(self, batch: Sequence[Conversation]) -> list[tuple[Conversation, EncodedConversation]]:
        """The conversations that are trained on, encoded; the others are listed."""
        encoded = iter(encode_conversations(self._tokenizer, [one for one in batch if one.skip_reason is None]))
        kept = []
        for conversation in batch:
            tokens = next(encoded) if conversation.skip_reason is None else None
            reason = conversation.skip_reason if tokens is None else self._skip_reason(conversation, tokens)
            if tokens is not None and reason is None:
                kept.append((conversation, tokens))
            else:
                self._skip(conversation, str(reason))
        self._mappings.update(conversation.mapping for conversation, _ in kept)
        return kept

    def _skip_reason(self, conversation: Conversation, tokens: EncodedConversation) -> str | None:
        if find_control_token(self._tokenizer, conversation.messages) is not None:
            return "control_token"
        return "longer_than_block" if len(tokens.ids) > self._origin.block_length else None

    def _skip(self, conversation: Conversation, reason: str) -> None:
        self._skipped[reason] += 1
        texts = [message["content"][:SHOWN_BYTES] for message in conversation.messages]
        shown = texts[0] if texts else conversation.first_bytes
        place = {"file": conversation.file, "line": conversation.line}
        self._skipped_lines.write({**place, "reason": reason, "first_bytes": shown})

    def _add_tokens(self, tokens: EncodedConversation, split: Split, number: int) -> None:
        ids = tokens.ids.astype(np.uint32) | np.where(tokens.is_answer, ANSWER_BIT, 0).astype(np.uint32)
        piece = DocumentSegments(np.array([number]), np.array([0]), np.array([len(ids)]), ids)
        self._splits[split].add(piece, self._progress[split])
        if self._origin.packing == "alone":
            self._splits[split].add_blocks(self._packers[split].flush(), self._progress[split])

    def finish(self) -> Manifest:
        """Close all files."""
        self._skipped_lines.close()
        contents = {}
        for split, writer in self._splits.items():
            progress = self._progress[split]
            writer.add_blocks(self._packers[split].flush(), progress)
            writer.close(progress)
            shards = [(self._folder, shard) for shard in progress.shards]
            contents[str(split)] = split_contents(self._folder, split, [progress], shards)
        documents = [(self._folder, shard) for shard in self._documents.close()]
        manifest = build_manifest(
            self._folder, self._origin, contents, documents, self._skipped, num_documents=self._num_documents
        )
        manifest = replace(manifest, conversations=dict(sorted(self._mappings.items())))
        manifest.check()
        return manifest


def log_store(store: Path) -> None:
    """Log the contents of the store, and what was skipped."""
    manifest = read_manifest(store, flag="--data_files")
    if manifest.conversations:
        logger.info("conversations by format: %s", describe_counts(manifest.conversations))
    for split, found in manifest.splits.items():
        counts = f"{found.num_documents:>9,} conversations {found.num_tokens:>13,} tokens {found.num_blocks:>9,} "
        counts += "block" if found.num_blocks == 1 else "blocks"
        logger.info(f"{split:10} {counts}")
    for reason, count in manifest.skipped_lines.items():
        reason_words = reason.replace("_", " ")
        logger.warning(f"skipped {counted(count, 'conversation')}: {reason_words} (listed in {store / SKIPPED_NAME})")


def describe_counts(conversations: Mapping[str, int]) -> str:
    """Numbers of conversations by format, the largest first.

    >>> describe_counts({"messages": 26, "alpaca": 51974})
    'alpaca 51,974, messages 26'
    """
    largest_first = sorted(conversations.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in largest_first)


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    for _, of_file in itertools.groupby(conversations, key=lambda conversation: conversation.file):
        while batch := list(itertools.islice(of_file, CONVERSATIONS_AT_ONCE)):
            yield batch


def _check_not_empty(manifest: Manifest) -> None:
    if not manifest.splits["train"].num_blocks:
        reasons = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifest.skipped_lines.items()]
        raise UserError(
            f"--data_files: no conversation is left to train on ({', '.join(reasons) or 'the files have none'}); use "
            f"other files, another --split, or more than --block_length {manifest.origin.block_length}"
        )
