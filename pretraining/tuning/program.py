"""The story of a fine-tuning run: conversations become blocks, and an exported model goes on learning from them."""

import logging
from dataclasses import replace
from pathlib import Path

from transformers import LlamaConfig, PreTrainedTokenizerFast

from pretraining.cli.finetune_arguments import ConversationArguments, FinetuneArguments
from pretraining.cli.launchers import process_rank
from pretraining.cli.preprocess_arguments import split_weights_of
from pretraining.cli.pretrain_arguments import PretrainArguments
from pretraining.corpus.cleaning import CleaningRules
from pretraining.corpus.input_hashes import hash_inputs
from pretraining.corpus.inputs import InputFile, find_inputs
from pretraining.corpus.manifest import Origin, SourceFile, TokenizerIdentity
from pretraining.corpus.store_source import find_mixture
from pretraining.corpus.tokenization import DocumentTokenizer
from pretraining.errors import UserError, reading
from pretraining.runs.checkpoints import BLOCKS_DIR_NAME, holds_nothing, is_run_folder
from pretraining.training.model import load_model_config
from pretraining.training.plan_only import say_plan
from pretraining.training.program import pretrain, quiet_libraries
from pretraining.tuning.chat_format import GENERATION_MARK, chat_template
from pretraining.tuning.conversation_store import make_conversation_store, say_store
from pretraining.tuning.conversations import MAX_LINE_BYTES, read_conversations
from pretraining.tuning.starting_model import StartingModel, find_starting_model, load_model_tokenizer

MOST_TOKENS = 2048  # of a block, unless told otherwise

logger = logging.getLogger(__name__)


def finetune(arguments: FinetuneArguments) -> None:
    """Make the blocks, and train on them from the weights of the model."""
    quiet_libraries()
    flags = arguments.conversations
    model = find_starting_model(flags.model or "")
    run = with_model(arguments.run, model)
    if run.plan.plan_only:
        say_plan(run)
        return
    store = make_blocks(flags, run, model.folder)
    if process_rank() == 0:  # whichever process has made them
        say_store(store)
    run = replace(run, data=replace(run.data, dataset=[str(store)]))
    pretrain(run, find_mixture([str(store)], revision=None))


def with_model(run: PretrainArguments, model: StartingModel) -> PretrainArguments:
    """The flags of training, with the model that was found and the lengths and names that follow from it."""
    location = str(model.folder)
    run = replace(run, model=replace(run.model, model=location), weights=location, weights_name=model.name)
    positions = load_model_config(run.model, None).max_position_embeddings
    run_dir = Path(run.trainer["output_dir"] or Path("runs") / model.run_name)
    data = replace(
        run.data,
        block_length=run.data.block_length or min(positions, MOST_TOKENS),
        dataset=[str(run_dir / BLOCKS_DIR_NAME)],
    )
    return replace(run, data=data, trainer={**run.trainer, "output_dir": str(run_dir)})


def make_blocks(flags: ConversationArguments, run: PretrainArguments, model_dir: Path) -> Path:
    """The block store of the conversations, in the run folder.

    Raises:
        UserError: when it cannot be made, or the folder holds something else.
    """
    run_dir = Path(run.trainer["output_dir"])
    store = run_dir / BLOCKS_DIR_NAME
    if run_dir.exists() and not store.exists() and (is_run_folder(run_dir) or not holds_nothing(run_dir)):
        raise UserError(f"--output_dir {run_dir}: holds something else already; choose another folder")
    files = find_inputs(flags.data_files, output_dir=run_dir)
    tokenizer = load_model_tokenizer(model_dir)
    origin = conversation_origin(flags, run, files, tokenizer)
    config: LlamaConfig = load_model_config(run.model, origin)
    make_conversation_store(
        store,
        origin,
        read_conversations(files),
        tokenizer_dir=model_dir,
        max_length=config.max_position_embeddings,
    )
    return store


def conversation_origin(
    flags: ConversationArguments, run: PretrainArguments, files: list[InputFile], tokenizer: DocumentTokenizer
) -> Origin:
    """All that decides the bytes of the store."""
    canary, weights = tokenizer.canary(), split_weights_of(flags.split)
    assert weights is not None, "checked with the flags"
    assert run.data.block_length is not None, "set with the model"
    hashes = hash_inputs(files, None)
    return Origin(
        sources=[
            SourceFile(file.path, file.source, file.num_bytes, sha256)
            for file, sha256 in zip(files, hashes, strict=True)
        ],
        text_field="messages",
        source_field="",
        split_text_files=False,
        max_document_bytes=MAX_LINE_BYTES,
        cleaning=CleaningRules(),
        tokenizer=TokenizerIdentity(
            tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, canary["text"], canary["ids"]
        ),
        token_rules=tokenizer.rules,
        block_length=run.data.block_length,
        packing=flags.packing,
        split_weights=list(weights),
        seed=run.trainer["seed"],
        num_slices=1,
        tokens_per_shard=0,  # one shard a split
        chat_template=template_of(tokenizer.folder, add_bos=tokenizer.rules.bos_token_id is not None),
    )


def template_of(model_dir: Path, *, add_bos: bool) -> str:
    """The chat template of the model, or this suite's for one that has none.

    Raises:
        UserError: when it does not say which part of a conversation is the assistant's.
    """
    with reading(f"--model {model_dir}: its tokenizer or chat template", remedy="fix or remove the template"):
        found = PreTrainedTokenizerFast.from_pretrained(model_dir).chat_template
    if found is None:
        return chat_template(add_bos=add_bos)
    if GENERATION_MARK not in str(found):
        raise UserError(
            f"--model {model_dir}: its chat template has no {GENERATION_MARK} around what the assistant says, so "
            "answers cannot be told from the rest; remove the template to have one made, or add that to it"
        )
    return found
