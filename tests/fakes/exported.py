"""An exported model of random weights, as pretrain.py would export it: for tools that only read it."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.runs.export.publish import finalize, make_partial_dir
from pretraining.training.model.tokenizer import tokenizer_for_model

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 256}


def export_random_model(
    folder: Path,
    store: Path,
    *,
    tokenizer_dir: Path | None = None,
    add_bos: bool = False,
    chat_template: str | None = None,
    dtype: torch.dtype = torch.float32,
    **fields: object,
) -> Path:
    """With the tokenizer of a block store, or another; `fields` are those of the config."""
    make_partial_dir(folder)
    tokenizer_dir = tokenizer_dir or store / "tokenizer"
    rules = load_document_tokenizer(str(tokenizer_dir), add_bos=add_bos)
    origin = read_manifest(store, flag="").origin
    origin = replace(origin, token_rules=rules.rules, chat_template=chat_template)
    config = LlamaConfig(vocab_size=rules.vocab_size, bos_token_id=1, eos_token_id=2, **SHAPE | fields)  # type: ignore[arg-type]
    torch.manual_seed(1)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    shutil.copytree(tokenizer_dir, folder / "made/tokenizer")
    (folder / "made/tokenizer").chmod(0o755)  # the folder that it was copied from may be read-only
    tokenizer_for_model(folder / "made", origin, max_length=config.max_position_embeddings).save_pretrained(folder)
    shutil.rmtree(folder / "made")
    finalize(folder)
    return folder
