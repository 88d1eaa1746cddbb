"""A fine-tuning run: write the blocks of the conversations, and train an exported model on them."""

import logging
from pathlib import Path

from transformers import LlamaConfig, PreTrainedTokenizerFast

from pretraining.cli.arguments.finetune import ConversationArguments
from pretraining.cli.arguments.preprocess import split_weights_of
from pretraining.data.build.origin import source_files
from pretraining.data.input.filters import CleaningRules
from pretraining.data.mixture import load_mixture
from pretraining.data.store.manifest import StoreSpec
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError, reading
from pretraining.finetuning.chat_template import GENERATION_MARK, chat_template
from pretraining.finetuning.conversations import MAX_LINE_BYTES, read_conversations
from pretraining.finetuning.inputs import FinetuneInputs, load_model_tokenizer
from pretraining.finetuning.mappings import mappings_for
from pretraining.finetuning.store import log_store, make_conversation_store
from pretraining.runs.run_folder import BLOCKS_DIR_NAME
from pretraining.system.launchers import process_rank
from pretraining.training.config.early_checks import check_inputs
from pretraining.training.dry_run.dry_run import print_plan
from pretraining.training.model.build import load_model_config
from pretraining.training.run import pretrain, quiet_libraries

logger = logging.getLogger(__name__)


def finetune(flags: ConversationArguments, inputs: FinetuneInputs) -> None:
    """Write the blocks, and train on them from the weights of the model."""
    quiet_libraries()
    run = inputs.run
    if run.plan.dry_run:
        print_plan(run)
        return
    store = make_blocks(flags, inputs)
    if process_rank() == 0:  # whichever process wrote them
        log_store(store)
    mixture = load_mixture([str(store)], revision=None)
    check_inputs(run, mixture)
    pretrain(run, mixture)


def make_blocks(flags: ConversationArguments, inputs: FinetuneInputs) -> Path:
    """Write the block store of the conversations into the run folder.

    Raises:
        UserError: when no conversation can be used, or the folder has other files.
    """
    run, run_dir = inputs.run, Path(inputs.run.trainer["output_dir"])
    store = run_dir / BLOCKS_DIR_NAME
    tokenizer = load_model_tokenizer(inputs.tokenizer_dir)
    origin = conversation_origin(flags, inputs, tokenizer)
    config: LlamaConfig = load_model_config(run.model, origin)
    make_conversation_store(
        store,
        origin,
        read_conversations(inputs.files, mappings_for(flags)),
        tokenizer_dir=tokenizer.folder,  # with an EOS, which that of the model may leave to its class
        max_length=config.max_position_embeddings,
    )
    return store


def conversation_origin(
    flags: ConversationArguments, inputs: FinetuneInputs, tokenizer: DocumentTokenizer
) -> StoreSpec:
    """Everything that determines the bytes of the store."""
    run = inputs.run
    weights = split_weights_of(flags.split)
    assert weights is not None, "checked with the flags"
    assert run.data.block_length is not None, "set with the model"
    return StoreSpec(
        sources=source_files(inputs.files, hashes_in=None),
        text_field=flags.field_names,
        source_field="",
        split_text_files=False,
        max_document_bytes=MAX_LINE_BYTES,
        cleaning=CleaningRules(),
        tokenizer=tokenizer.identity(),
        token_rules=tokenizer.rules,
        block_length=run.data.block_length,
        packing=flags.packing,
        split_weights=list(weights),
        seed=run.trainer["seed"],
        num_slices=1,
        tokens_per_shard=0,  # one shard per split
        chat_template=template_of(inputs.tokenizer_dir, add_bos=tokenizer.rules.bos_token_id is not None),
    )


def template_of(model_dir: Path, *, add_bos: bool) -> str:
    """The chat template of the model, or the default one.

    Raises:
        UserError: when it does not mark the assistant's answers.
    """
    with reading(f"--model {model_dir}: its tokenizer or chat template", remedy="fix or remove the template"):
        found = PreTrainedTokenizerFast.from_pretrained(model_dir).chat_template
    if found is None:
        return chat_template(add_bos=add_bos)
    if GENERATION_MARK.search(str(found)) is None:
        raise UserError(
            f"--model {model_dir}: its chat template has no {{% generation %}} around the assistant's answers, so they "
            "cannot be found; add it, or remove the template to use the default one"
        )
    return found
