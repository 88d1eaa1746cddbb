"""Convert an exported model to a GGUF file for llama.cpp; needs `pip install gguf`.

    python3 -m tools.to_gguf runs/llama2_7b/model llama2_7b.gguf
    llama-server -m llama2_7b.gguf

llama.cpp's convert_hf_to_gguf.py identifies tokenizers of published models by a hash of their ids. It rejects those of
train_tokenizer.py ("BPE pre-tokenizer was not recognized"), although llama.cpp supports them. For Llama 2's without
tokenizer.model it gives all tokens the same score, so that text silently gets other ids. This tool converts both kinds
from tokenizer.json, and the weights in their own dtype.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

logger = logging.getLogger("pretraining.to_gguf")

PRE_TOKENIZERS = ["Digits", "ByteLevel"]  # those of train_tokenizer.py
PRE_TOKENIZER_NAME = "smollm"  # their name in llama.cpp


@dataclass(frozen=True)
class GgufArguments:
    """Flags of tools.to_gguf."""

    model: Path | None = flag(None, "exported model; may come first, without --model")
    output: Path | None = flag(None, "GGUF file to write; may come second, without --output")

    def __post_init__(self) -> None:
        """Check flags, files and packages at once."""
        checks = {
            "--model: is missing; pass an exported model, e.g. RUN/model": self.model is not None,
            "--output: is missing; pass the file to write, e.g. model.gguf": self.output is not None,
            f"--output {self.output}: exists already; choose another file": not (self.output and self.output.exists()),
            "gguf: is not installed; pip install gguf": importlib.util.find_spec("gguf") is not None,
        }
        checks |= {
            f"--model {self.model}: {name} is missing; pass an exported model, e.g. RUN/model": (
                self.model / name
            ).is_file()
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
            if self.model is not None
        }
        check_all(checks)


def main(argv: Sequence[str]) -> None:
    """Write sizes, vocabulary and weights."""
    groups = [dataclass_group("GGUF", GgufArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=("model", "output"))
    model, output = arguments.model, arguments.output
    from gguf import GGUFWriter

    writer = GGUFWriter(output.with_name(output.name + ".partial"), "llama", use_temp_file=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    add_shape(writer, config, name=model.resolve().parent.name)
    add_vocabulary(writer, model, config["vocab_size"])
    add_weights(writer, model, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    output.with_name(output.name + ".partial").rename(output)
    logger.info("%s: %.1f MB; next: llama-server -m %s", output, output.stat().st_size / 1e6, output)


def add_shape(writer: GGUFWriter, config: dict[str, Any], *, name: str) -> None:
    """Write name and sizes.

    Raises:
        UserError: if the model is not a Llama with default rotary embedding.
    """
    rope = config["rope_parameters"]
    if config["architectures"] != ["LlamaForCausalLM"] or rope["rope_type"] != "default":
        raise UserError("--model: is not a Llama with default rotary embedding; use llama.cpp's convert_hf_to_gguf.py")
    writer.add_name(name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])


def add_vocabulary(writer: GGUFWriter, model: Path, vocab_size: int) -> None:
    """Write tokens, merges, control tokens and the chat template.

    Raises:
        UserError: if the tokenizer is not supported.
    """
    from gguf import SpecialVocab, TokenType

    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    is_bytes = not tokenizer["model"].get("byte_fallback")
    check_kind(tokenizer, is_bytes=is_bytes)
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    kinds |= {number: TokenType.BYTE for number, text in texts.items() if not is_bytes and _is_byte(text)}
    for token in tokenizer["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unused = [f"[PAD{number}]" for number in range(vocab_size)]
    writer.add_tokenizer_model("gpt2" if is_bytes else "llama")
    writer.add_tokenizer_pre(PRE_TOKENIZER_NAME if is_bytes else "default")
    writer.add_token_list([texts.get(number, text) for number, text in enumerate(unused)])
    writer.add_token_types([kinds.get(number, TokenType.UNUSED) for number in range(vocab_size)])
    if not is_bytes:
        writer.add_token_scores(scores_of(tokenizer, texts, vocab_size))
        writer.add_add_space_prefix("Prepend" in json.dumps(tokenizer["normalizer"]))
    SpecialVocab(model, load_merges=is_bytes, n_vocab=vocab_size).add_to_gguf(writer, quiet=True)


def check_kind(tokenizer: dict[str, Any], *, is_bytes: bool) -> None:
    """Reject a tokenizer that llama.cpp would mistake for another one.

    Raises:
        UserError: if the tokenizer is not supported.
    """
    found = tokenizer["pre_tokenizer"]
    steps = [step["type"] for step in (found or {}).get("pretokenizers", [])]
    is_supported = steps == PRE_TOKENIZERS and tokenizer["normalizer"] is None if is_bytes else found is None
    if not is_supported:
        raise UserError(
            "--model: its tokenizer is neither of train_tokenizer.py's kind nor of Llama 2's; use llama.cpp's "
            "convert_hf_to_gguf.py, which supports those of published models"
        )


def scores_of(tokenizer: dict[str, Any], texts: dict[int, str], vocab_size: int) -> list[float]:
    """Scores by token: tokens that are merged first have the highest, as in SentencePiece."""
    first: dict[str, int] = {}
    for number, pair in enumerate(tokenizer["model"]["merges"]):
        first.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), number)
    return [-float(first.get(texts.get(number, ""), 0)) for number in range(vocab_size)]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def add_weights(writer: GGUFWriter, model: Path, config: dict[str, Any]) -> None:
    """Write all tensors by llama.cpp's names, one at a time in memory; 1D tensors in fp32, as llama.cpp requires."""
    import torch
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quantize
    from safetensors import safe_open

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    kinds = {torch.bfloat16: GGMLQuantizationType.BF16, torch.float16: GGMLQuantizationType.F16}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                tensor = opened.get_tensor(name)
                kind = kinds.get(tensor.dtype if tensor.ndim > 1 else None, GGMLQuantizationType.F32)
                projection = name.split(".")[-2]
                if projection in heads:
                    tensor = interleaved(tensor, heads[projection])
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                assert target is not None, f"llama.cpp has no name for {name}, which is not in Llama models"
                writer.add_tensor(target, quantize(tensor.float().numpy(), kind), raw_dtype=kind)


def interleaved(tensor: Any, num_heads: int) -> Any:
    """Rows of queries or keys in llama.cpp's rotary order: interleaved pairs instead of the two halves of a head."""
    rows = tensor.shape[0]
    return tensor.reshape(num_heads, 2, rows // num_heads // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


if __name__ == "__main__":
    run_program(main)
