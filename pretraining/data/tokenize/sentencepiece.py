"""Build a tokenizer.json from a SentencePiece model that gives the ids of the SentencePiece library.

The format is sentencepiece_model.proto of google/sentencepiece; transformers has its classes, so that the library
itself is not needed. What `tokenizers` cannot give exactly is rejected, such as every normalization of characters: its
`Precompiled` replaces whole graphemes, where the library replaces the longest prefix that its table has. One difference
remains, in unigram models: of two ways to divide a run of one character that have the same score, the library's
rounding to float32 chooses.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pretraining.errors import UserError, reading

SPACE = "\u2581"
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces; the others are unused and bytes
UNKNOWN_PENALTY = 10.0  # of a unigram model: an unknown character has the lowest score, less this


def sentencepiece_tokenizer(content: bytes, *, place: str, remedy: str) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a SentencePiece model, and the names of its unk, bos and eos tokens.

    Raises:
        UserError: with `place` and `remedy`, when the file is another one, or of a kind that cannot be exact.
    """
    with reading(f"{place}: its tokenizer.model", remedy="copy it there again"):
        from transformers.utils import sentencepiece_model_pb2_new  # `transformers` takes 0.2 s

        proto = sentencepiece_model_pb2_new.ModelProto()
        proto.ParseFromString(content)
        if not proto.pieces:
            raise ValueError("it has no pieces")
    if (problem := _problem(proto)) is not None:
        raise UserError(f"{place}: its tokenizer.model {problem}, which is not converted; {remedy}")
    tokenizer = Tokenizer(_bpe(proto) if proto.trainer_spec.model_type == BPE else _unigram(proto))
    tokenizer.normalizer = _normalizer(proto)
    if (splitter := _splitter(proto)) is not None:
        tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = _decoder(proto)
    tokenizer.add_tokens(
        [AddedToken(p.piece, normalized=False, special=False) for p in proto.pieces if p.type == USER_DEFINED]
    )
    tokenizer.add_special_tokens(
        [AddedToken(p.piece, normalized=False, special=True) for p in proto.pieces if p.type in (UNKNOWN, CONTROL)]
    )
    spec = proto.trainer_spec
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id}
    return tokenizer, {role: proto.pieces[n].piece for role, n in ids.items() if 0 <= n < len(proto.pieces)}


def _problem(proto: Any) -> str | None:
    """What `tokenizers` would encode otherwise than SentencePiece; None if nothing."""
    spec, normal = proto.trainer_spec, {p.piece for p in proto.pieces if p.type == NORMAL}
    if spec.model_type not in (UNIGRAM, BPE):
        return "is neither a BPE nor a unigram model"
    if spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        return "puts spaces elsewhere than before words"
    if proto.normalizer_spec.precompiled_charsmap:
        return f"normalizes characters ({proto.normalizer_spec.name or 'by its own rule'})"
    symbols = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    if proto.normalizer_spec.add_dummy_prefix and symbols:
        return "has user-defined symbols and adds a space before a text"
    if any(SPACE in symbol or " " in symbol for symbol in symbols):
        return "has user-defined symbols with spaces in them"
    if spec.model_type == UNIGRAM and not _characters(proto) <= normal:
        return "lacks single characters of its pieces"
    return None


def _characters(proto: Any) -> set[str]:
    """The characters of pieces that text can become."""
    return {character for p in proto.pieces if p.type == NORMAL for character in p.piece}


def _bpe(proto: Any) -> models.BPE:
    """Merges by score, from best to worst: SentencePiece joins the pair whose piece has the best score."""
    vocab = {p.piece: number for number, p in enumerate(proto.pieces)}
    mergeable = {p.piece: p.score for p in proto.pieces if p.type == NORMAL}
    merges = [
        (-score, vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in mergeable.items()
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    spec = proto.trainer_spec
    return models.BPE(
        vocab,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=proto.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _unigram(proto: Any) -> models.Unigram:
    """Control tokens and bytes get a score so low that the same text as several pieces is always better."""
    lowest = min(p.score for p in proto.pieces if p.type == NORMAL) - UNKNOWN_PENALTY
    vocab = [(p.piece, p.score if p.type in (NORMAL, USER_DEFINED) else _never(p.piece, lowest)) for p in proto.pieces]
    return models.Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _never(piece: str, lowest: float) -> float:
    return math.floor(lowest) * (len(piece) + 1.0)


def _normalizer(proto: Any) -> normalizers.Normalizer:
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _splitter(proto: Any) -> pre_tokenizers.PreTokenizer | None:
    """Divide text at characters that are in no piece, where one of them is in the name of a control token or byte.

    Such a name in a text would be that token for `tokenizers`, which finds no other way to write the character.
    """
    names = {p.piece for p in proto.pieces if p.type not in (NORMAL, USER_DEFINED)}
    known = _characters(proto)
    if proto.trainer_spec.model_type != UNIGRAM or {character for name in names for character in name} <= known:
        return None
    return pre_tokenizers.Split(Regex(f"[^{''.join(map(re.escape, sorted(known)))}]+"), "isolated")


def _decoder(proto: Any) -> decoders.Decoder:
    steps: Sequence[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps = [*steps, decoders.Strip(content=" ", left=1)]
    return decoders.Sequence(list(steps))
