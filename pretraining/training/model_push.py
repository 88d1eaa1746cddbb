"""The exported model onto the Hub, when the training is over and lies safely on the disk."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars
from transformers import Trainer

from pretraining.cli.errors import UserError
from pretraining.corpus.hub_errors import HUB_ERRORS, persistently, reason
from pretraining.training.agreement import from_first, is_first

logger = logging.getLogger(__name__)


def push_model(trainer: Trainer, model_dir: Path) -> None:
    """Push an exported model if --push_to_hub asks for it; called on every process, the first one pushes.

    Raises:
        UserError: on every process, when the Hub does not take it.
    """
    if not trainer.args.push_to_hub:
        return
    problem = from_first(_push_problem(trainer, model_dir) if is_first() else None)
    if problem is not None:
        raise UserError(
            f"--push_to_hub: {model_dir} could not be pushed ({problem}); it is whole, and the same command pushes "
            "again"
        )


def _push_problem(trainer: Trainer, model_dir: Path) -> str | None:
    name = trainer.hub_model_id
    disable_progress_bars()
    api = HfApi(token=trainer.args.hub_token)
    try:
        persistently(lambda: api.upload_folder(repo_id=name, folder_path=model_dir, commit_message="Exported model"))
    except HUB_ERRORS as error:
        return reason(error)
    logger.info("pushed: %s/%s", constants.ENDPOINT, name)
    return None
