"""Find the inputs of finetune.py, model and conversations, without torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from pretraining.cli.arguments.finetune import FinetuneArguments
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.input.find import InputFile, find_inputs
from pretraining.errors import UserError
from pretraining.finetuning.base_model import BaseModel, find_base_model
from pretraining.runs.run_folder import BLOCKS_DIR_NAME, is_run_folder
from pretraining.training.config.early_checks import check_run_folder
from pretraining.training.model.fields import max_positions, model_fields

DEFAULT_BLOCK_LENGTH = 2048


@dataclass(frozen=True)
class FinetuneInputs:
    """The flags of training with the model in them, its folder, and the files; no files for --dry_run."""

    run: PretrainArguments
    model_dir: Path
    files: list[InputFile]


def find_inputs_of(arguments: FinetuneArguments) -> FinetuneInputs:
    """Find model and files, and check the run folder.

    Raises:
        UserError: when one of them is missing or cannot be used.
    """
    flags = arguments.conversations
    model = find_base_model(flags.model or "")
    run = with_model(arguments.run, model)
    if run.plan.dry_run:
        return FinetuneInputs(run, model.folder, [])
    run_dir = Path(run.trainer["output_dir"])
    if is_run_folder(run_dir) and not (run_dir / BLOCKS_DIR_NAME).exists():
        raise UserError(f"--output_dir {run_dir}: has other files; choose another folder")
    check_run_folder(run_dir, run.durability.resume)
    return FinetuneInputs(run, model.folder, find_inputs(flags.data_files, output_dir=run_dir))


def with_model(run: PretrainArguments, model: BaseModel) -> PretrainArguments:
    """The flags of training with the model, its block length and the run folder."""
    location = str(model.folder)
    run = replace(run, model=replace(run.model, model=location), weights=location, weights_name=model.name)
    positions = max_positions(model_fields(run.model, None))
    run_dir = Path(run.trainer["output_dir"] or Path("runs") / model.run_name)
    data = replace(
        run.data,
        block_length=run.data.block_length or min(positions, DEFAULT_BLOCK_LENGTH),
        dataset=[str(run_dir / BLOCKS_DIR_NAME)],
    )
    return replace(run, data=data, trainer={**run.trainer, "output_dir": str(run_dir)})
