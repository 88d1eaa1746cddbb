"""Starts pretrain.py with exports that go wrong; takes its flags and launchers.

FAULTS="transposed,none,..." says what is wrong with the first export of the process, the second, and so on.
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import pretrain
from pretraining.cli.program import run_program

FAULTS = iter(os.environ["FAULTS"].split(","))
QUERY = "model.layers.0.self_attn.q_proj.weight"
fault = "none"


def faulty_gathering(gather: Callable) -> Callable:
    """What happens between the model in training and the file."""

    def get_state_dict(*words: Any) -> Any:
        global fault
        fault = next(FAULTS)
        weights = gather(*words)
        if weights is not None and fault == "transposed":
            weights[QUERY] = weights[QUERY].T.contiguous()
        if weights is not None and fault == "changed":
            weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 1
        return weights

    return get_state_dict


def faulty_completion(complete: Callable) -> Callable:
    """What happens to the files."""

    def complete_folder(partial: Path) -> None:
        complete(partial)
        if fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault == "bit":
            path = partial / "model.safetensors"
            weights = load_file(path)
            weights[QUERY][0, 0] *= 1 + 1e-6
            save_file(weights, path, metadata={"format": "pt"})
        path = partial / "config.json"
        config = json.loads(path.read_text())
        if fault == "theta":
            config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 500.0
        if fault == "old_theta":
            config["rope_theta"] = 500.0
        if fault == "untied":
            config["tie_word_embeddings"] = False
        path.write_text(json.dumps(config))

    return complete_folder


if __name__ == "__main__":
    from pretraining.training.callbacks import export as weight_exports

    Accelerator.get_state_dict = faulty_gathering(Accelerator.get_state_dict)
    weight_exports.finalize = faulty_completion(weight_exports.finalize)
    run_program(pretrain.main)
