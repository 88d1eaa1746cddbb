"""Encode text by tokenizer.json, unchanged; where only files of other tools exist, by one that `convert` makes.

transformers rewrites some pipelines (Llama 2's, in 5.x: other ids for text that begins with a space), so the ids of
this project are those of tokenizer.json itself. Every block store records its hash and a canary text with its ids,
which readers of the store check.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pretraining.data.tokenize.backends import (
    MAX_CHECKED_CHARACTERS,
    CheckedBackend,
    FlatIds,
    ReferenceBackend,
    check_ids,
)
from pretraining.data.tokenize.choice import choose_backend
from pretraining.data.tokenize.compiled_backend import CompiledBackend, SwitchingBackend
from pretraining.data.tokenize.convert import OTHER_TOOLS_FILES, converted_folder, with_default_eos
from pretraining.data.tokenize.reference import (
    TOKENIZER_FILES,
    TokenizerFile,
    ids_of,
    open_reference,
    read_pipeline,
    read_special_tokens,
)
from pretraining.errors import UserError, reading

CANARY_TEXT = "  Ünïcode \u2019quotes\u2019, 1,234.5 €\n\n\tI wanna go </s> 東京 🚆 end "


@dataclass(frozen=True)
class TokenRules:
    """The control tokens before and after a document in the blocks."""

    bos_token_id: int | None
    eos_token_id: int


@dataclass(frozen=True)
class TokenizerIdentity:
    """A tokenizer as readers of its blocks check it: the hash of its tokenizer.json, a canary text and its ids."""

    name: str
    sha256: str
    vocab_size: int
    canary_text: str
    canary_ids: list[int]


def id_dtype(vocab_size: int) -> str:
    """NumPy type of ids in blocks: two bytes if the vocabulary fits, otherwise four."""
    return "uint16" if vocab_size <= np.iinfo(np.uint16).max + 1 else "uint32"


class DocumentTokenizer:
    """A tokenizer.json, the special tokens of its folder, and the rules for BOS and EOS."""

    def __init__(
        self, folder: Path, *, name: str, add_bos: bool, backend: str, flag: str, num_bytes: int | None = 0
    ) -> None:
        self.name = name
        self._flag = flag
        self._place = f"{flag} {name}"
        self.folder = folder
        content = (folder / "tokenizer.json").read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        special_tokens = read_special_tokens(folder)
        file = TokenizerFile(read_pipeline(content, special_tokens))
        self._choice = (backend, num_bytes)
        self._backend = choose_backend(backend, file, sorted(set(special_tokens.values())), num_bytes=num_bytes)
        self._tokenizer = file.tokenizer
        self.vocab_size = file.vocab_size
        self.rules = TokenRules(
            bos_token_id=self._special_id(special_tokens, "bos_token") if add_bos else None,
            eos_token_id=self._special_id(special_tokens, "eos_token"),
        )
        self._check_text_is_text(special_tokens)

    @property
    def backend_name(self) -> str:
        """Name of the library that encodes."""
        return self._backend.name

    def __reduce__(self) -> tuple[Callable[..., "DocumentTokenizer"], tuple[()]]:
        """Pickle the folder and the flags: another process opens it itself."""
        backend, num_bytes = self._choice
        opened = partial(
            DocumentTokenizer,
            self.folder,
            name=self.name,
            add_bos=self.rules.bos_token_id is not None,
            flag=self._flag,
            backend=backend,
            num_bytes=num_bytes,
        )
        return opened, ()

    @property
    def compiled(self) -> CompiledBackend | None:
        """The compiled backend, while it is the one that encodes."""
        backend = self._backend
        if isinstance(backend, SwitchingBackend):
            backend = backend.current
        fast = backend.fast if isinstance(backend, CheckedBackend) else None
        return fast if isinstance(fast, CompiledBackend) else None

    def check(self, text: str, ids: np.ndarray) -> None:
        """Compare the ids of a text, with its control tokens, with those of the reference.

        Raises:
            BackendDiffersError: when it has others.
        """
        plain = ids[0 if self.rules.bos_token_id is None else 1 : -1]
        if len(text) > MAX_CHECKED_CHARACTERS:
            text = text[:MAX_CHECKED_CHARACTERS]
            plain = self._backend.encode([text]).ids
        check_ids(self._backend.name, plain, ReferenceBackend(self._tokenizer), text)

    def use_reference(self) -> None:
        """Encode with the reference from now on."""
        self._choice = ("reference", 0)
        self._backend = ReferenceBackend(self._tokenizer)

    def wait_until_compiled(self) -> None:
        """Wait for a compilation that is still at work: ended with the program, it would never help a later one."""
        if isinstance(self._backend, SwitchingBackend):
            self._backend.wait()

    def _special_id(self, special_tokens: dict[str, str], role: str) -> int:
        token = special_tokens.get(role)
        token_id = self._tokenizer.token_to_id(token) if token is not None else None
        if token_id is None:
            own = "its" if Path(self.name).is_dir() else "the"
            rest = "" if own == "its" else " of a downloaded copy"
            raise UserError(
                f"{self._place}: has no {role} that is in its tokenizer.json (found {token!r}); "
                f"set {role} in {own} tokenizer_config.json{rest}"
            )
        return token_id

    def _check_text_is_text(self, special_tokens: dict[str, str]) -> None:
        for role in ("bos_token", "eos_token"):
            token = special_tokens.get(role, "")
            ids = self._tokenizer.encode(f"a {token} {token}", add_special_tokens=False).ids
            if token and self._tokenizer.token_to_id(token) in ids:
                raise UserError(
                    f"{self._place}: the tokenizer maps plain text {token} to a control token; use another tokenizer"
                )

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of each text with its control tokens: BOS (if `add_bos`), the text, EOS."""
        return self.surround(self._backend.encode(texts))

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without control tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def surround(self, plain: FlatIds) -> FlatIds:
        """`plain` with the control tokens of each document: BOS (if `add_bos`) before it, EOS after it."""
        bos_token_id = self.rules.bos_token_id
        lengths = plain.lengths + (1 if bos_token_id is None else 2)
        ends = np.cumsum(lengths)
        ids = np.empty(int(lengths.sum()), dtype=np.promote_types(plain.ids.dtype, id_dtype(self.vocab_size)))
        is_text = np.ones(len(ids), dtype=bool)
        is_text[ends - 1] = False
        ids[ends - 1] = self.rules.eos_token_id
        if bos_token_id is not None:
            is_text[ends - lengths] = False
            ids[ends - lengths] = bos_token_id
        ids[is_text] = plain.ids
        return FlatIds(ids, lengths)

    def identity(self) -> TokenizerIdentity:
        """What readers of the blocks check their tokenizer by."""
        ids = ids_of(self._tokenizer, CANARY_TEXT)
        return TokenizerIdentity(self.name, self.sha256, self.vocab_size, CANARY_TEXT, ids)


def encode_canary(folder: Path, text: str) -> list[int]:
    """The ids of a canary text by the tokenizer of a folder.

    Raises:
        UserError: when the tokenizer cannot be read.
    """
    with reading(f"{folder}: its tokenizer", remedy="copy it there again"):
        content = (folder / "tokenizer.json").read_bytes()
        return ids_of(open_reference(content, read_special_tokens(folder)), text)


def load_document_tokenizer(
    name: str, *, add_bos: bool, backend: str = "reference", flag: str = "--tokenizer", num_bytes: int | None = 0
) -> DocumentTokenizer:
    """Open a tokenizer folder or Hub id; `num_bytes` of text will be encoded (None: unknown).

    Raises:
        UserError: when folder or Hub repository do not exist, or have no readable tokenizer.
    """
    try:
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(name, TOKENIZER_FILES, flag)  # newer models lack special_tokens_map.json
        has_tokenizer = (folder / "tokenizer.json").is_file()
    except OSError as error:
        raise UserError(f"{flag} {name}: cannot be read ({error.strerror}); check the path") from None
    with reading(f"{flag} {name}: its tokenizer.json or tokenizer_config.json", remedy="copy them there again"):
        specials = read_special_tokens(folder)
        if not has_tokenizer or "eos_token" not in specials:
            folder = _completed(folder, specials, name, flag)
        return DocumentTokenizer(folder, name=name, add_bos=add_bos, backend=backend, flag=flag, num_bytes=num_bytes)


def _completed(folder: Path, special_tokens: dict[str, str], name: str, flag: str) -> Path:
    """A folder with the tokenizer.json and EOS that `folder` lacks, from its other files."""
    if not Path(name).is_dir():
        folder = _download(name, (*TOKENIZER_FILES, *OTHER_TOOLS_FILES), flag)
    if (folder / "tokenizer.json").is_file():
        return with_default_eos(folder, special_tokens)
    converted = converted_folder(folder, special_tokens, place=f"{flag} {name}")
    if converted is None:
        raise UserError(
            f"{flag} {name}: the folder has no tokenizer.json, vocab.json with merges.txt, or tokenizer.model; "
            "copy one of them there, or make one with train_tokenizer.py"
        )
    return converted


def _download(name: str, files: Sequence[str], flag: str) -> Path:
    from pretraining.hub.repository import download_files  # the Hub's client takes 0.2 s to import

    return download_files(name, files, flag=flag)
