"""The texts that a tokenizer is trained on, read once, and some that are held out to measure it on."""

import logging
from collections.abc import Iterator, Sequence

from pretraining.cli.progress import Progress
from pretraining.data.input.documents import Document, ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.reading import read_documents

logger = logging.getLogger(__name__)

HELD_OUT_EVERY = 20
MAX_HELD_OUT_BYTES = 8 << 20  # 2 million tokens, enough for four digits of the bytes per token
# Of text. Memory grows with the different words in it, by 0.7 KB each: 300 MB with 854,000 of them took 592 MB.
MAX_TRAINING_BYTES = 10**9


class TrainingTexts:
    """Nineteen of twenty documents, and of more than 1 GB of them an even sample; may be read once.

    A document is used while the bytes used are below `max_bytes` times the share of the input read so far, so the
    sample depends on the input alone, and is even however well the files are compressed.
    """

    def __init__(
        self, files: Sequence[InputFile], options: ReadingOptions, *, max_bytes: int = MAX_TRAINING_BYTES
    ) -> None:
        self._files = files
        self._options = options
        self._max_bytes = max_bytes
        self._num_held_out_bytes = 0
        self._keep_every = 1  # of the documents that are held out
        self.held_out: list[str] = []
        self.num_bytes = 0  # used for the training
        self.num_unused_bytes = 0

    def __iter__(self) -> Iterator[str]:
        """The texts to train on."""
        total = max(1, sum(file.num_bytes for file in self._files))
        num_read = 0
        with Progress(total) as progress:

            def advance(num_file_bytes: int) -> None:
                nonlocal num_read
                num_read += num_file_bytes
                progress.advance(num_file_bytes, "counting words")

            lines = read_documents(self._files, self._options, advance)
            documents = (line for line in lines if isinstance(line, Document))
            for number, document in enumerate(documents, start=1):
                num_bytes = len(document.text.encode("utf-8"))
                if number % HELD_OUT_EVERY == 0:
                    self._hold_out(number // HELD_OUT_EVERY, document.text, num_bytes)
                elif self.num_bytes + num_bytes <= self._max_bytes * num_read / total:
                    self.num_bytes += num_bytes
                    yield document.text
                else:
                    self.num_unused_bytes += num_bytes
        self._log_end()

    def _hold_out(self, number: int, text: str, num_bytes: int) -> None:
        """Keep every document that is held out; every second of them whenever they get too many."""
        if number % self._keep_every:
            return
        self.held_out.append(text)
        self._num_held_out_bytes += num_bytes
        while self._num_held_out_bytes > MAX_HELD_OUT_BYTES and len(self.held_out) > 1:
            self.held_out = self.held_out[1::2]
            self._keep_every *= 2
            self._num_held_out_bytes = sum(len(kept.encode("utf-8")) for kept in self.held_out)

    def _log_end(self) -> None:
        """Log what was used, before the minutes in which nothing is read."""
        used, found = self.num_bytes / 1e6, (self.num_bytes + self.num_unused_bytes) / 1e6
        sample = f", an even sample of {found:,.1f} MB" if self.num_unused_bytes else ""
        logger.info("training on %s MB of text%s; merging its words", f"{used:,.1f}", sample)
