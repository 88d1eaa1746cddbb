"""Flags under the names that they had before reach transformers under those of today."""

import warnings
from pathlib import Path

import pytest

from pretraining.cli.arguments.trainer import with_our_defaults
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.config.trainer_arguments import make_training_arguments


@pytest.mark.parametrize("prefix", ["activation", "gradient"])
def test_activation_checkpointing_has_no_warning_by_either_name(prefix: str, tmp_path: Path) -> None:
    options = {"every_n_layers": 2}
    flags = {f"{prefix}_checkpointing": True, f"{prefix}_checkpointing_kwargs": options, "use_cpu": True}
    batch = GlobalBatch(micro_batch_blocks=1, gradient_accumulation_steps=1, num_processes=1, block_length=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        made = make_training_arguments(
            with_our_defaults(flags), run_dir=tmp_path, ds_config={}, batch=batch, num_steps=1, precision="fp32"
        )
    assert made.activation_checkpointing is True
    assert made.activation_checkpointing_kwargs == options
