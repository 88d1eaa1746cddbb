"""Render messages by the chat template of a tokenizer, within limits of time, memory and length.

A template is a program that comes with a model. Jinja's sandbox keeps it from files and code, but limits neither time
nor memory.
"""

import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from pretraining.errors import UserError

# Limits for a batch of conversations, far above normal use (1 ms and 10 KB per conversation).
SECONDS, SECONDS_PER_BYTE = 5.0, 1e-6  # of this process' CPU time
SPARE_BYTES, SPARE_CHARACTERS, BYTES_PER_BYTE = 512 << 20, 1 << 20, 8

Message = Mapping[str, str]


def render_messages(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], place: str, **options: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and begin and end of each answer in it if `return_assistant_tokens_mask`.

    `options` are those of transformers; `place` names the conversation in errors. Call it within `rendering_limits`.

    Raises:
        UserError: when the template fails or exceeds a limit.
    """
    place = f"{place}the chat template of --model"
    try:
        (text,), found = render_jinja_template(
            [list(messages)],
            chat_template=tokenizer.get_chat_template(),
            **options,
            **tokenizer.special_tokens_map,
        )
    except MemoryError:
        raise UserError(f"{place} needs too much memory; use another template") from None
    except TimeoutError:
        raise UserError(f"{place} takes too long; use another template") from None
    except Exception as error:  # templates raise any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place} failed ({type(error).__name__}: {reason}); fix it, or use another template") from None
    most = SPARE_CHARACTERS + BYTES_PER_BYTE * num_bytes_of(messages)
    if len(text) > most:
        raise UserError(f"{place} writes {len(text):,} characters, more than {most:,}; use another template")
    return text, found[0] if found else []


def num_bytes_of(messages: Sequence[Message]) -> int:
    """Bytes of all texts of a conversation."""
    return sum(len(message["content"].encode()) for message in messages)


@contextmanager
def rendering_limits(num_bytes: int) -> Iterator[None]:
    """Limit CPU time and memory while conversations of `num_bytes` are rendered."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + SPARE_BYTES + num_bytes * BYTES_PER_BYTE
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS + num_bytes * SECONDS_PER_BYTE)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def find_control_token(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str | None:
    """A control token whose name is in a text; it would be encoded as one, and could end an answer early."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = [message["content"] for message in messages]
    return next((name for name in names if any(name in text for text in texts)), None)
