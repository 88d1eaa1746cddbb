"""Choose the library that encodes, by the tokenizer, the flag and the size of the input."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pretraining.data.tokenize.backends import (
    PROBE_TEXTS,
    Backend,
    CheckedBackend,
    FastTokensBackend,
    ReferenceBackend,
    check_same_ids,
)
from pretraining.data.tokenize.bpe_tables import UnsupportedError
from pretraining.data.tokenize.compiled_backend import SwitchingBackend, check_kind, is_ready, load_backend
from pretraining.data.tokenize.reference import TokenizerFile
from pretraining.errors import UserError
from pretraining.system.cores import usable_cores

MIN_BYTES = 1 << 20  # of input; less takes less time than loading anything
# From here on a compilation, 10 s of one core, is won back in the same run: on two cores at 400 MB by arithmetic, as
# 300 MB took 18.4 s with it and 10.0 s by fastokens alone (Intel Xeon).
MIN_BYTES_TO_COMPILE = 256_000_000 * usable_cores()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """The backends of a tokenizer. A fast one is checked by the probe, and while it runs."""

    file: TokenizerFile
    special_texts: Sequence[str]

    @cached_property
    def reference(self) -> ReferenceBackend:
        """`tokenizers`."""
        return ReferenceBackend(self.file.tokenizer)

    def compiled(self) -> Backend:
        """The compiled loops."""
        return self._checked(load_backend(self.file))

    def fastokens(self) -> Backend:
        """The library of this name."""
        return self._checked(FastTokensBackend(self.file.tokenizer.to_str()))

    def _checked(self, fast: Backend) -> Backend:
        specials = [text for token in self.special_texts for text in (token, f"a {token} b{token}")]
        check_same_ids(fast, self.reference, PROBE_TEXTS + specials)
        return CheckedBackend(fast, self.reference)


def choose_backend(
    name: str, file: TokenizerFile, special_texts: Sequence[str], *, num_bytes: int | None = 0
) -> Backend:
    """The backend of --tokenizer_backend for an input of `num_bytes` (None: unknown).

    `auto` is the compiled one if it is there and the input has a megabyte, otherwise `fastokens` or, if that fails the
    probe, the reference. For large inputs the loops are compiled meanwhile, and take over.

    Raises:
        UserError: when a fast backend was requested by name and cannot be used.
    """
    candidates = Candidates(file, special_texts)
    if name == "reference":
        return candidates.reference
    if name != "auto":
        return _requested(name, getattr(candidates, name))
    num_bytes = MIN_BYTES_TO_COMPILE if num_bytes is None else num_bytes
    is_compilable = num_bytes >= MIN_BYTES and _is_supported(file)
    if is_compilable and is_ready():
        return _first_of([candidates.compiled, candidates.fastokens], candidates)
    first = _first_of([candidates.fastokens], candidates)
    return (
        SwitchingBackend(first, candidates.compiled) if is_compilable and num_bytes >= MIN_BYTES_TO_COMPILE else first
    )


def _is_supported(file: TokenizerFile) -> bool:
    try:
        check_kind(file.pipeline)
    except UnsupportedError:
        return False
    return True


def _first_of(loaders: Sequence[Callable[[], Backend]], candidates: Candidates) -> Backend:
    """The backend that can be loaded and passes the probe, or the reference; one line for each that does not.

    Raises:
        Exception: when `tokenizers` cannot use the file, and so nothing can.
    """
    for load in loaders:
        try:
            return load()
        except UnsupportedError:
            continue
        except Exception as error:
            _ = candidates.reference  # if there is none, that is what is wrong
            logger.warning("encoding several times slower: %s cannot be used (%s)", load.__name__, _line(error))
    return candidates.reference


def _requested(name: str, load: Callable[[], Backend]) -> Backend:
    try:
        return load()
    except Exception as error:
        raise UserError(f"--tokenizer_backend {name}: cannot use this tokenizer ({_line(error)}); use auto") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
