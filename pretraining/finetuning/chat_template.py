"""Encode conversations by the chat template of the model.

The template marks the assistant's answers, EOS included, by {% generation %}. From these marks transformers finds the
tokens of answers, as it does for other trainers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from pretraining.finetuning.conversations import Conversation
from pretraining.generation.chat_template import num_bytes_of, render_messages, rendering_limits

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
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it


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
    if not conversations:
        return []
    options = {"return_assistant_tokens_mask": True}
    with rendering_limits(sum(num_bytes_of(conversation.messages) for conversation in conversations)):
        rendered = [
            render_messages(tokenizer, one.messages, f"{one.file}:{one.line}: ", **options) for one in conversations
        ]
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
