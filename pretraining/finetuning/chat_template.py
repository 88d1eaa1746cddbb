"""Encode conversations by the chat template of the model.

The template marks the assistant's answers, EOS included, by {% generation %}. From these marks transformers finds the
tokens of answers, as it does for other trainers.
"""

import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from pretraining.errors import UserError
from pretraining.finetuning.conversations import Conversation

# Headers are plain text, so that the vocabulary gets no untrained token. EOS ends only answers; a line break is before
# a header and not after a turn, so that an answer ends the text.
CHAT_TEMPLATE = """\
{% for message in messages %}\
{{ ('' if loop.first else '\\n') + '<|' + message['role'] + '|>\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}\
{% else %}{{ message['content'] | trim }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"""
GENERATION_MARK = "{% generation %}"

# Limits of a template for a batch of conversations, far above normal use (1 ms and 10 KB per conversation).
SECONDS, SECONDS_PER_BYTE = 5.0, 1e-6  # of this process' CPU time
SPARE_BYTES, SPARE_CHARACTERS, BYTES_PER_BYTE = 512 << 20, 1 << 20, 8


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Ids, int64 of shape [tokens], and which of them are answers, bool."""

    ids: np.ndarray
    is_answer: np.ndarray


def chat_template(*, add_bos: bool) -> str:
    """The template of a model that has none; it begins with BOS if training added one."""
    return f"{{{{ bos_token }}}}{CHAT_TEMPLATE}" if add_bos else CHAT_TEMPLATE


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> list[EncodedConversation]:
    """Encode as `tokenizer.apply_chat_template` does, within limits of time, memory and length.

    Raises:
        UserError: when the template fails on a conversation or exceeds a limit.
    """
    num_bytes = sum(len(conversation.text) for conversation in conversations)
    with _limits(SECONDS + num_bytes * SECONDS_PER_BYTE, SPARE_BYTES + num_bytes * BYTES_PER_BYTE):
        rendered = [_render(tokenizer, conversation) for conversation in conversations]
    encoded = tokenizer([text for text, _ in rendered], add_special_tokens=False)
    found = []
    for number, (ids, (_, answers)) in enumerate(zip(encoded["input_ids"], rendered, strict=True)):
        is_answer = np.zeros(len(ids), bool)
        for begin, end in answers:
            first, last = encoded.char_to_token(number, begin), encoded.char_to_token(number, end - 1)
            if first is not None:
                is_answer[first : None if last is None else last + 1] = True
        found.append(EncodedConversation(np.array(ids, np.int64), is_answer))
    return found


def _render(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and begin and end of each answer in it."""
    place = f"{conversation.file}:{conversation.line}: the chat template of --model"
    try:
        (text,), (answers,) = render_jinja_template(
            [conversation.messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except MemoryError:
        raise UserError(f"{place} needs too much memory; use another template") from None
    except TimeoutError:
        raise UserError(f"{place} takes too long; use another template") from None
    except Exception as error:  # templates raise any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{place} failed ({type(error).__name__}: {reason}); fix it, or use another template") from None
    most = SPARE_CHARACTERS + BYTES_PER_BYTE * len(conversation.text)
    if len(text) > most:
        raise UserError(f"{place} writes {len(text):,} characters, more than {most:,}; use another template")
    return text, answers


@contextmanager
def _limits(cpu_seconds: float, num_bytes: int) -> Iterator[None]:
    """Limit CPU time and memory, which jinja's sandbox does not."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + num_bytes
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def find_control_token(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> str | None:
    """A control token whose name is in a text; it would be encoded as one, and could end an answer early."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = [message["content"] for message in conversation.messages]
    return next((name for name in names if any(name in text for text in texts)), None)
