"""Claim a partial store for an input and its flags, as soon as the input is hashed.

A run that may be resumed waits for that. The SHA-256 of a file of 1 TB takes 10 minutes, so a new run writes slices
meanwhile; if it ends before, nothing of them is resumed.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build.assemble import publish
from pretraining.data.build.checks import flat_file_lines
from pretraining.data.build.origin import build_store_spec, source_files, sources_before_hashing
from pretraining.data.build.partial_store import PartialStore
from pretraining.data.build.working_files import INPUT_HASHES_NAME
from pretraining.data.input.files import InputFile
from pretraining.data.input.hashes import Hashes
from pretraining.data.store.integrity import check_hashes
from pretraining.data.store.manifest import Manifest, StoreSpec, read_manifest
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError

logger = logging.getLogger(__name__)


class StoreClaim:
    """The claim of the first process, which alone has the store open."""

    def __init__(
        self,
        store: PartialStore,
        arguments: PreprocessArguments,
        files: Sequence[InputFile],
        tokenizer: DocumentTokenizer,
        hashes: "Future[Hashes]",
    ) -> None:
        self.store = store
        self._files = files
        self._hashes = hashes
        self._is_recorded = False
        self._origin = build_store_spec(arguments, tokenizer, sources_before_hashing(files))

    def begin(self) -> tuple[StoreSpec, Manifest | None]:
        """The origin, perhaps without hashes yet; its manifest as well, if only publishing is left.

        Raises:
            UserError: when the store was started with other input or flags.
        """
        if self.store.is_new:
            self.store.discard()  # what a run without a recorded origin has left
        elif self._record():
            logger.info("resuming from %s", self.store.folder)
        for line in flat_file_lines(self._files, self._origin):
            logger.info(line)
        if not self.store.is_assembled:
            return self._origin, None
        check_hashes(self.store.folder, read_manifest(self.store.folder, flag="--output_dir"), flag="--output_dir")
        return self._origin, publish(self.store)

    def advance(self) -> None:
        """Record the origin if the input has just been hashed; costs nothing otherwise.

        Raises:
            UserError: when a file of the input cannot be hashed.
        """
        if not self._is_recorded and self._hashes.done():
            self._record()

    def finish(self) -> StoreSpec:
        """The origin, after all is read.

        Raises:
            UserError: when the input is not what it was.
        """
        if not self._is_recorded:
            self._record()
        sources = source_files(self._files, hashes_in=self.store.folder / INPUT_HASHES_NAME)
        for then, now in zip(self._origin.sources, sources, strict=True):
            if then.sha256 != now.sha256:
                raise UserError(
                    f"--data_files {now.path}: changed during reading; delete {self.store.folder} and start again"
                )
        return self._origin

    def _record(self) -> bool:
        """Record the origin with all hashes; whether an earlier run has."""
        hashes_in = self.store.folder / INPUT_HASHES_NAME
        sources = source_files(self._files, self._hashes.result(), hashes_in=hashes_in)
        self._origin = replace(self._origin, sources=sources)
        self._is_recorded = True
        return self.store.claim(self._origin)
