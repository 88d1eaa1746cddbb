"""The tokenizer of an exported model: that of the data set, with the token rules of training."""

from pathlib import Path

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from pretraining.data.store.manifest import StoreSpec
from pretraining.data.tokenize.reference import read_special_tokens
from pretraining.errors import reading


def tokenizer_for_model(store: Path, origin: StoreSpec, *, max_length: int) -> PreTrainedTokenizerFast:
    """The data set's tokenizer, which puts before a prompt what training puts before a document: BOS or nothing.

    A `PreTrainedTokenizerFast`, since transformers uses its tokenizer.json unchanged; as a LlamaTokenizer it would
    rebuild the pipeline and give other ids. The config keeps a canary text with its ids, so that generation can check
    that its tokenizer is that of training.
    """
    folder = store / "tokenizer"
    with reading(f"{folder}: the tokenizer of the blocks", remedy="copy it there again"):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special_tokens = read_special_tokens(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rules = origin.token_rules
    if rules.bos_token_id is None:
        tokenizer.post_processor = processors.Sequence([])
    else:
        bos_token = special_tokens["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", pair=f"{bos_token} $A $B", special_tokens=[(bos_token, rules.bos_token_id)]
        )
    names = ("bos_token", "eos_token", "unk_token")
    chat = {} if origin.chat_template is None else {"chat_template": origin.chat_template}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        canary={"text": origin.tokenizer.canary_text, "ids": origin.tokenizer.canary_ids},
        **{name: special_tokens[name] for name in names if name in special_tokens},
        **chat,
    )
