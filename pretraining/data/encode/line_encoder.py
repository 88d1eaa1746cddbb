"""Encode a batch of JSON lines by compiled loops: no text becomes a Python string, and Python's lock is released.

What the loops leave, and one line in a thousand as a check, goes through `parse_json_line`. The result is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pretraining.data.encode.blake2b import BLOCK_BYTES, empty_lanes
from pretraining.data.encode.encoded import DocumentMetadata, EncodedBatch
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.documents import Document, RawLine, ReadingOptions, SkippedLine, parse_json_line, skipped
from pretraining.data.input.json.loops import Lines, Texts
from pretraining.data.input.json.strings import FAILED, PADDING_BYTES
from pretraining.data.input.line_blocks import LineBlock
from pretraining.data.input.reading import RawBatch
from pretraining.data.tokenize.backends import CHECKED_PER_MILLE, MAX_CHECKED_CHARACTERS, BackendDiffersError, FlatIds
from pretraining.data.tokenize.compiled_backend import CompiledBackend
from pretraining.data.tokenize.tokenizer import DocumentTokenizer, id_dtype


@dataclass(frozen=True)
class LineEncoder:
    """Encodes batches of JSON lines; several threads may use it."""

    options: ReadingOptions
    splits: SplitAssigner
    tokenizer: DocumentTokenizer

    def supports(self, batch: RawBatch) -> bool:
        """Whether a batch can be encoded so."""
        return batch.file.format == "jsonl" and "." not in self.options.text_field + self.options.source_field

    def encode(self, batch: RawBatch, compiled: CompiledBackend) -> EncodedBatch:
        """Parse, split and encode the lines of a batch, whose list of parts is empty afterwards.

        Raises:
            BackendDiffersError: when a line that is checked has another text or other ids.
        """
        num_bytes = sum(part.num_bytes for part in batch.parts)
        lines = BatchLines(batch.parts)
        gap = len(compiled.rules.prefix_bytes)
        texts = empty_texts(lines.sizes, gap)
        skipped_lines = self._read(lines, texts, compiled)
        kept = np.flatnonzero(texts.ends != FAILED)
        begins, ends = texts.begins[kept], texts.ends[kept]
        digests = self._digests(texts.data, begins, ends, compiled)
        checked = np.flatnonzero(digests % np.uint64(1000) < CHECKED_PER_MILLE)
        checked_texts = self._check(lines, texts, kept[checked], digests[checked])
        lines.clear()
        rows = DocumentMetadata(
            sources=self._sources(batch, texts, kept),
            lines=lines.numbers[kept],
            byte_offsets=lines.byte_offsets[kept],
            num_text_bytes=ends - begins,
            splits=self.splits.numbers_of(digests),
        )
        flat = compiled.encode_utf8(
            texts.data,
            compiled.rules.add_prefixes(texts.data, begins).astype(np.uint64),
            ends.astype(np.uint64),
            id_dtype(self.tokenizer.vocab_size),
            bos_token_id=self.tokenizer.rules.bos_token_id,
            eos_token_id=self.tokenizer.rules.eos_token_id,
        )
        self._check_ids(checked_texts, checked, flat)
        return EncodedBatch(
            path=batch.file.path,
            rows=rows,
            ids=flat.ids,
            lengths=flat.lengths,
            skipped=skipped_lines,
            end=batch.end,
            num_file_bytes=batch.num_file_bytes,
            num_bytes=num_bytes,
        )

    def _read(self, lines: "BatchLines", texts: Texts, compiled: CompiledBackend) -> list[SkippedLine]:
        """Fill `texts`; the lines that are no documents."""
        for first, block in lines.blocks():
            names = (self.options.text_field, self.options.source_field)
            fields = [np.frombuffer(name.encode(), np.uint8) for name in names]
            compiled.functions.read_json_lines(Lines(block.data, block.bounds, *fields), first, texts)
        skipped_lines = []
        for number in np.flatnonzero(texts.ends == FAILED).tolist():
            raw = lines.line(number)
            parsed = skipped(raw, "too_large") if raw.content is None else parse_json_line(raw, self.options)
            if isinstance(parsed, SkippedLine):
                skipped_lines.append(parsed)
            else:
                put_document(parsed, number, texts)
        return skipped_lines

    def _digests(self, data: np.ndarray, begins: np.ndarray, ends: np.ndarray, compiled: CompiledBackend) -> np.ndarray:
        """The hashes of texts that decide their splits."""
        digests = np.empty(len(begins), np.uint64)
        compiled.functions.hash_texts(data, begins, ends, self.splits.initial_state, empty_lanes(), digests)
        return digests

    def _check(self, lines: "BatchLines", texts: Texts, numbers: np.ndarray, digests: np.ndarray) -> list[str]:
        """Compare lines and hashes with what Python makes of them; the beginning of each text."""
        found = [texts.data[texts.begins[number] : texts.ends[number]].tobytes() for number in numbers]
        for number, text in zip(numbers.tolist(), found, strict=True):
            raw = lines.line(number)
            parsed = parse_json_line(raw, self.options)
            if not isinstance(parsed, Document) or parsed.utf8 != text:
                raise BackendDiffersError(
                    f"the compiled loops read another text than the reference in line {raw.number:,}"
                )
        if not np.array_equal(digests, self.splits.digests(found)):
            raise BackendDiffersError("the compiled loops hash a text otherwise than the reference, for another split")
        return [text.decode("utf-8")[: MAX_CHECKED_CHARACTERS + 1] for text in found]

    def _check_ids(self, texts: list[str], numbers: np.ndarray, encoded: FlatIds) -> None:
        """Compare the ids of documents with those of the reference for their texts."""
        ends = np.cumsum(encoded.lengths)
        for text, end, length in zip(texts, ends[numbers], encoded.lengths[numbers], strict=True):
            self.tokenizer.check(text, encoded.ids[end - length : end])

    @staticmethod
    def _sources(batch: RawBatch, texts: Texts, kept: np.ndarray) -> list[str]:
        own, default = batch.file.source, batch.file.default_source
        begins, ends = texts.source_begins[kept], texts.source_ends[kept]
        if own or not (ends != FAILED).any():
            return [own or default] * len(kept)
        places = zip(begins.tolist(), ends.tolist(), strict=True)
        return [texts.data[begin:end].tobytes().decode("utf-8") or default for begin, end in places]


class BatchLines:
    """The lines of a batch, numbered from 0 on: their sizes, and their numbers and byte offsets in the file.

    It takes the lines out of `parts`, so that a line of 200 MB is not there twice.
    """

    def __init__(self, parts: list[RawLine | LineBlock]) -> None:
        self._parts: list[RawLine | LineBlock] = []
        while parts:
            self._parts.append(_as_block(parts.pop(0)))
        sizes = [len(part.bounds) - 1 if isinstance(part, LineBlock) else 1 for part in self._parts]
        self._firsts = np.cumsum([0, *sizes])
        columns = [_places(part) for part in self._parts]
        none = np.empty(0, np.int64)
        self.sizes, self.numbers, self.byte_offsets = (
            np.concatenate([none, *(column[place] for column in columns)]) for place in range(3)
        )

    def blocks(self) -> Iterator[tuple[int, LineBlock]]:
        """Lines together, with the number of the first one; not those that are blank or too large."""
        for first, part in zip(self._firsts.tolist(), self._parts, strict=False):
            if isinstance(part, LineBlock):
                yield first, part

    def line(self, number: int) -> RawLine:
        """One line."""
        place = int(np.searchsorted(self._firsts, number, side="right")) - 1
        part = self._parts[place]
        return part.line(number - int(self._firsts[place])) if isinstance(part, LineBlock) else part

    def clear(self) -> None:
        """Forget the content of the lines."""
        self._parts.clear()


def _as_block(part: RawLine | LineBlock) -> RawLine | LineBlock:
    """A line as a block, unless it is blank, too large, or an item of a list."""
    if isinstance(part, LineBlock) or not isinstance(part.content, bytes) or part.is_item or part.content.isspace():
        return part
    data = b"".join([part.content, bytes(PADDING_BYTES)])
    return LineBlock(np.frombuffer(data, np.uint8), np.array([0, len(part.content)]), part.number - 1, part.byte_offset)


def _places(part: RawLine | LineBlock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, numbers and byte offsets of the lines of a part."""
    if isinstance(part, LineBlock):
        sizes = np.diff(part.bounds)
        numbers = part.number + np.arange(1, len(part.bounds))
        return sizes, numbers, part.byte_offset + part.bounds[:-1] - part.bounds[0]
    size = 0 if part.content is None else part.num_bytes
    return np.array([size]), np.array([part.number]), np.array([part.byte_offset])


def empty_texts(sizes: np.ndarray, gap: int) -> Texts:
    """Space for the texts of lines of these sizes, and for `gap` bytes before each."""
    bounds = np.cumsum(np.concatenate([[0], sizes + gap]))
    number = len(sizes)
    begins, ends, source_begins, source_ends = (np.full(number, FAILED) for _ in range(4))
    data = np.empty(int(bounds[-1]) + BLOCK_BYTES, np.uint8)
    return Texts(data, bounds[:-1].copy(), gap, begins, ends, source_begins, source_ends)


def put_document(document: Document, number: int, texts: Texts) -> None:
    """Put a document that Python has parsed into the space of its line, which has more bytes."""
    begin = int(texts.spaces[number]) + texts.gap
    texts.begins[number], texts.ends[number] = begin, _put(document.utf8, begin, texts.data)
    texts.source_begins[number] = texts.source_ends[number] = FAILED
    if document.source is not None:
        begin = int(texts.ends[number])
        end = _put(document.source.encode(), begin, texts.data)
        texts.source_begins[number], texts.source_ends[number] = begin, end


def _put(content: bytes, begin: int, data: np.ndarray) -> int:
    data[begin : begin + len(content)] = np.frombuffer(content, np.uint8)
    return begin + len(content)
