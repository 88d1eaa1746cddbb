"""The config and the tokenizer of a checkpoint or exported model. Imports no torch."""

from pathlib import Path
from typing import Any

from pretraining.errors import UserError, reading
from pretraining.runs.record_file import record_of_checkpoint
from pretraining.runs.run_folder import TOKENIZER_DIR_NAME
from pretraining.runs.untrusted import check_model_folder, check_no_code
from pretraining.system.checked_json import parse_json

EXPORTED_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by the precision of a run


def config_fields(checkpoint: Path) -> dict[str, Any]:
    """The fields of the model's config, from the checkpoint or its run, with the dtype of exported models.

    Raises:
        UserError: when neither has a config, one cannot be read, or it asks for custom code.
    """
    own, needs = checkpoint / "config.json", ("identity.precision", "identity.model_config")
    with reading(f"{own}: the model config", remedy="restore it from a backup"):
        fields = parse_json(own.read_bytes()) if own.is_file() else None
        record = record_of_checkpoint(checkpoint, needs=needs)
        if record is not None:  # config.json of a checkpoint always has fp32
            identity = record["identity"]
            dtype = EXPORTED_DTYPES[identity["precision"]]
            fields = {**(identity["model_config"] if fields is None else fields), "dtype": dtype}
        if fields is not None:
            check_no_code(fields, str(checkpoint))
            return dict(fields)
    raise UserError(f"{checkpoint}: has no config.json, and its run no run.json; copy the model's config there")


def tokenizer_places(folder: Path) -> tuple[Path, Path]:
    """Where the tokenizer of a model or checkpoint can be: in its folder, or in that of its run."""
    return folder, folder.parent / TOKENIZER_DIR_NAME


def tokenizer_of(folder: Path) -> Path:
    """The folder with the tokenizer of a model or checkpoint: itself, or that of its run.

    Raises:
        UserError: when neither has one, or it asks for custom code.
    """
    place = next((place for place in tokenizer_places(folder) if (place / "tokenizer.json").is_file()), None)
    if place is None:
        raise UserError(f"{folder}: has no tokenizer.json; copy the tokenizer of its data set there")
    check_model_folder(place, str(place))
    return place
