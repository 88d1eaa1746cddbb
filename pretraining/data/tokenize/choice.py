"""Choose the library that encodes, by the tokenizer, the flag and the size of the input."""

import logging
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from pretraining.data.tokenize.backends import (
    PROBE_TEXTS,
    Backend,
    CheckedBackend,
    FastTokensBackend,
    ReferenceBackend,
    check_same_ids,
)
from pretraining.data.tokenize.compiled_backend import SwitchingBackend, is_worthwhile, load_backend
from pretraining.errors import UserError

logger = logging.getLogger(__name__)


def choose_backend(
    name: str, tokenizer: Tokenizer, special_texts: Sequence[str], *, num_bytes: int | None = 0
) -> Backend:
    """The backend of --tokenizer_backend for an input of `num_bytes` (None: unknown).

    `auto` is `fastokens` if it loads and passes the probe, otherwise the reference; for large inputs the compiled one
    takes over as soon as it is ready and has passed the probe.

    Raises:
        UserError: when a fast backend was requested by name and cannot be used.
    """
    reference = ReferenceBackend(tokenizer)
    if name == "reference":
        return reference
    probe = PROBE_TEXTS + [text for token in special_texts for text in (token, f"a {token} b{token}")]

    def checked(fast: Backend) -> Backend:
        check_same_ids(fast, reference, probe)
        return CheckedBackend(fast, reference)

    if name == "compiled":
        return _requested(name, lambda: checked(load_backend(tokenizer.to_str())))
    if name == "fastokens":
        return _requested(name, lambda: checked(FastTokensBackend(tokenizer.to_str())))
    try:
        first = checked(FastTokensBackend(tokenizer.to_str()))
    except Exception as error:
        logger.warning("encoding with the reference, several times slower: fastokens cannot be used (%s)", _line(error))
        first = reference
    return SwitchingBackend(tokenizer.to_str(), first, checked) if is_worthwhile(num_bytes) else first


def _requested(name: str, load: Callable[[], Backend]) -> Backend:
    try:
        return load()
    except Exception as error:
        raise UserError(f"--tokenizer_backend {name}: cannot use this tokenizer ({_line(error)}); use auto") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
