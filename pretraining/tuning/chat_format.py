"""Conversations as token ids: by the chat template that travels with the model, whoever applies it later.

The template marks what the assistant says, its EOS with it, by {% generation %}. transformers tells from that which
tokens are answers, as it does for other trainers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from pretraining.tuning.conversations import Conversation

# Headers are plain text, so that the vocabulary gets no token that was never trained. EOS ends an answer and nothing
# else; a line break comes before a header and not after a turn, so that an answer ends the text.
TURNS = """\
{% for message in messages %}\
{{ ('' if loop.first else '\\n') + '<|' + message['role'] + '|>\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}\
{% else %}{{ message['content'] | trim }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"""
GENERATION_MARK = "{% generation %}"


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Ids, int64 of shape [tokens], and which of them are answers."""

    ids: np.ndarray
    is_answer: np.ndarray


def chat_template(*, add_bos: bool) -> str:
    """The template of a model that has none yet; with BOS at its beginning where training put one."""
    return f"{{{{ bos_token }}}}{TURNS}" if add_bos else TURNS


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> list[EncodedConversation]:
    """As `tokenizer.apply_chat_template` gives them."""
    encoded = tokenizer.apply_chat_template(
        [conversation.messages for conversation in conversations],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return [
        EncodedConversation(np.array(ids, np.int64), np.array(mask, bool))
        for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def control_token_in(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> str | None:
    """A control token whose name stands in a text; there it would become one, and could end an answer early."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = [message["content"] for message in conversation.messages]
    return next((name for name in names if any(name in text for text in texts)), None)
