"""Talk to a model: each answer completes the whole conversation, rendered by the chat template of the model."""

import contextlib
import dataclasses
import logging
import re
import sys
from collections.abc import Iterator

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.logs import counted
from pretraining.errors import UserError
from pretraining.generation.batching import Request
from pretraining.generation.chat_template import find_control_token, num_bytes_of, render_messages, rendering_limits
from pretraining.generation.generate import Completion, OnToken, complete_requests, eos_ids
from pretraining.generation.prompts import check_text, stdin_lines
from pretraining.generation.terminal import StreamingPrinter, write_out

PROMPT, EXIT, RESET = "you> ", "/exit", "/reset"
COMMAND = re.compile(r"/\w*")
ANSWER_SHARE = 4  # a quarter of the positions is enough for an answer; older turns are dropped for it
SAMPLE_ANSWER = "Zq7xW"  # a text that no template has

logger = logging.getLogger(__name__)


class Chat:
    """A conversation with a model.

    The model is changed: all tokens that end an answer become its EOS.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: GenerateArguments
    ) -> None:
        self._model, self._tokenizer, self.arguments = model, tokenizer, arguments
        self._num_positions: int = model.config.max_position_embeddings
        self._system = [{"role": "system", "content": arguments.system}] if arguments.system else []
        _check_message(tokenizer, self._system)
        model.config.eos_token_id = sorted(answer_ends(model, tokenizer))
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = list(self._system)
        self._num_asked = 0

    def ask(self, text: str, on_token: OnToken) -> Completion:
        """The answer, which the next one follows; `on_token` is called with its growing text.

        An interrupted answer stays in the conversation as far as it came.

        Raises:
            UserError: when the text cannot be encoded, or is too long; then the conversation is as before.
        """
        check_text(text)
        question = {"role": "user", "content": text}
        _check_message(self._tokenizer, [question])
        before, answer = list(self.messages), ""  # so far

        def keep(request: Request, text: str) -> None:
            nonlocal answer
            answer = text
            on_token(request, text)

        self.messages.append(question)
        try:
            request, arguments = self._request()
            (completion,) = complete_requests(
                self._model, self._tokenizer, [request], arguments=arguments, on_token=keep
            )
        except KeyboardInterrupt:
            self._end_turn(answer)
            raise
        except UserError:
            self.messages = before
            raise
        self._end_turn(completion.text)
        return completion

    def _end_turn(self, answer: str) -> None:
        self.messages.append({"role": "assistant", "content": answer})
        self._num_asked += 1

    def _request(self) -> tuple[Request, GenerateArguments]:
        """What is completed, and the flags with as many new tokens as the positions allow."""
        wanted = min(self.arguments.max_new_tokens, self._num_positions // ANSWER_SHARE)
        ids, num_dropped = self._encode(), 0
        _check_ids(ids, self._model.config.vocab_size)
        while len(ids) + wanted > self._num_positions and self._drop_oldest_turn():
            ids, num_dropped = self._encode(), num_dropped + 1
        num_free = self._num_positions - len(ids)
        if num_free < 1:
            raise UserError(
                f"--chat: a message of {len(ids):,} tokens fills the model's {self._num_positions:,} positions; "
                "shorten it"
            )
        if num_dropped:
            turns = counted(num_dropped, "turn")
            logger.info(f"dropped {turns} from the beginning: the model has {self._num_positions:,} positions")
        arguments = dataclasses.replace(self.arguments, max_new_tokens=min(self.arguments.max_new_tokens, num_free))
        return Request("", ids, self._num_asked, 0), arguments

    def _encode(self) -> list[int]:
        """The ids of the conversation, up to where an answer begins."""
        with rendering_limits(num_bytes_of(self.messages)):
            text, _ = render_messages(self._tokenizer, self.messages, "", add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _drop_oldest_turn(self) -> bool:
        """Remove the oldest question and its answer; not the last question."""
        begin = len(self._system)
        if len(self.messages) - begin < 2:
            return False
        del self.messages[begin : begin + 2]
        return True


def _check_ids(ids: list[int], vocab_size: int) -> None:
    """Check what cannot be completed: no id, and ids that the model does not have."""
    if not ids:
        raise UserError("--chat: the chat template of --model gives no token for the message; use another template")
    if max(ids) >= vocab_size:
        raise UserError(
            f"--model: its tokenizer gives id {max(ids)} for the messages, and the model has {vocab_size:,} tokens; "
            "copy the tokenizer that it was trained with"
        )


def answer_ends(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that end an answer: EOS of model, generation config and tokenizer, and what the template puts after it."""
    ends = eos_ids(model.config) | eos_ids(model.generation_config) | {tokenizer.eos_token_id}
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": SAMPLE_ANSWER}]
    with rendering_limits(num_bytes_of(messages)):
        text, _ = render_messages(tokenizer, messages, "")
    _, found, after = text.rpartition(SAMPLE_ANSWER)
    following = tokenizer(after if found else "", add_special_tokens=False)["input_ids"][:1]
    added = tokenizer.added_tokens_decoder
    ends.update(token for token in following if token in added and added[token].special)
    return {token for token in ends if token is not None}


def _check_message(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> None:
    name = find_control_token(tokenizer, messages)
    if name is not None:
        raise UserError(f"--chat: the message has the name of the control token {name}; write it in another way")


def chat_loop(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: GenerateArguments) -> None:
    """Answer what is typed until Ctrl-D or /exit, or each line of stdin.

    On a terminal, Ctrl-C ends an answer, and a message that cannot be answered is reported; in a pipe both end the
    program.

    Raises:
        UserError: see `Chat.ask`; also for an unknown command.
    """
    chat = Chat(model, tokenizer, arguments)
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    for text in _typed_lines() if is_typed else stdin_lines("--chat: stdin"):
        if text.strip() == EXIT:
            return
        if text.strip() == RESET:
            chat.reset()
            logger.info("the conversation is empty again")
        elif text.strip():
            try:
                _answer(chat, text)
            except (UserError, KeyboardInterrupt) as error:
                if not is_typed:
                    raise
                write_out("\n\n")
                if isinstance(error, UserError):
                    logger.error(error)


def _answer(chat: Chat, text: str) -> None:
    """Print an answer as it grows."""
    if COMMAND.fullmatch(text.strip()):
        raise UserError(f"--chat: unknown command {text.strip()}; use {RESET} or {EXIT}")
    flags = chat.arguments
    printer = StreamingPrinter(flags.stop or ())
    completion = chat.ask(text, printer.update)
    printer.end(completion)
    if completion.finish_reason == "length":
        is_full = completion.num_tokens < flags.max_new_tokens
        reason = "the positions of the model are full" if is_full else "--max_new_tokens"
        logger.info(f"the answer was cut after {counted(completion.num_tokens, 'token')} ({reason})")


def _typed_lines() -> Iterator[str]:
    """What is typed on the terminal, up to Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives `input` the arrow keys
    logger.info(f"chat: {RESET} forgets the conversation, Ctrl-C ends an answer, {EXIT} or Ctrl-D the program")
    with contextlib.suppress(EOFError):
        while True:
            yield input(PROMPT)
    write_out("\n")
