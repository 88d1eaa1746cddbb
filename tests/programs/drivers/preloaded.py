"""Starts scripts in forks of a process that has everything imported, which takes a start from ten seconds to one.

Reads jobs as JSON lines, answers each with the exit code of its first rank that failed, or 0. Ranks have the variables
that torchrun sets; a job of no rank is a program of one process without a launcher.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

from pretraining.cli.program import importing_libraries
from pretraining.system.torch_environment import use_reproducible_kernels

# By the functions of libraries that a run calls.
IMPORTED_LATER = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "encodings.idna",
    "scipy.io",
    "torch.utils.serialization",
)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import_everything()
    for line in sys.stdin:
        answers.write(f"{run_job(json.loads(line))}\n")
        answers.flush()


def import_everything() -> None:
    """Import what a run of two ranks imports, a third of the time of each rank otherwise.

    deepspeed imports its Muon optimizer with any other, and asks the C compiler for what its operators need.
    """
    use_reproducible_kernels()  # before torch is imported, as a program does
    with importing_libraries():
        from transformers import LlamaForCausalLM, Trainer  # noqa: F401
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        import pretraining.data.synthetic
        import pretraining.generation.generate
        import pretraining.training.run  # noqa: F401
        from pretraining.runs.model_card import template
        from pretraining.training.distributed.deepspeed_internals import disable_shm_op, import_muon_without_compiler
        from pretraining.training.model.fields import load_presets

        disable_shm_op()
        import_muon_without_compiler()
        get_checkpoint_conversion_mapping("llama")  # compiles the patterns of all models
        template()
        load_presets()
        for name in IMPORTED_LATER:
            import_module(name)
    keep_operators()


def keep_operators() -> None:
    """Have no rank take back torch's operators as it exits, one by one for 30 ms."""
    import torch.library

    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if finalizer.peek()[1] is torch.library._del_library:
            finalizer.atexit = False


def run_job(job: dict[str, Any]) -> int:
    """Fork the ranks, wait for them; when one fails, end the others."""
    running = {fork(job, rank_variables(job, rank)) for rank in range(job["num_ranks"])} or {fork(job, {})}
    failed = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in running:
                os.kill(other, signal.SIGTERM)
    return failed


def rank_variables(job: dict[str, Any], rank: int) -> dict[str, str]:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["num_ranks"], "LOCAL_WORLD_SIZE": job["num_ranks"]}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
    return {name: str(value) for name, value in variables.items()}


def fork(job: dict[str, Any], variables: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.update(job["env"] | variables)
    os.chdir(job["cwd"])
    code = 1
    try:
        run_script(job["argv"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def read_hub_variables() -> None:
    """Take what the libraries of the Hub have read when they were imported from the variables of this process."""
    import datasets.config
    from huggingface_hub import constants, hf_api, hf_file_system

    for module in (constants, datasets.config):
        importlib.reload(module)  # others read its values where they need them
    for client in (hf_api.api, hf_file_system.hffs):
        client.endpoint = constants.ENDPOINT


def run_script(words: list[str]) -> None:
    """What `python WORDS` runs: a file, or a module after -m; with the variables that were read at its start."""
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if "HF_ENDPOINT" in os.environ:
        read_hub_variables()
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
