"""Is an exported model the one that was trained? Its weights are read back, and its losses compared.

The beginning of a block goes through the model in training, as it trains, and through the folder opened again, as
everybody opens it; documents are isolated in both where they are in training. Compared is the loss of each token and
not the mean of all: what is wrong moves some up and others down.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from pretraining.training.data.batch import collate_targets, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL, Item
from pretraining.training.model.loss import token_losses
from pretraining.training.trainer.trainer import PretrainingTrainer

# Of a block, so that the model of 7 billion parameters is through in seconds on a CPU too, and attention that keeps
# its whole matrix needs no memory to speak of.
MOST_TOKENS = 1024
# Root mean square of the differences by token.
MOST_NATS = {"fp32": 2e-4, "bf16": 0.1, "fp16": 0.1}
NOT_COMPARED = ("use_cache", "transformers_version", "_name_or_path")  # fields of a config
ROOM_BESIDE_WEIGHTS = 1.5  # on a GPU: for activations, and the logits of a large vocabulary


@dataclass(frozen=True)
class ReferenceLosses:
    """The losses of the model in training, fp32 [tokens], of the beginning of the block `item`.

    `is_trained` tells the tokens that training has a loss of, in which padding has none. `block_length` is of the block
    as a whole.
    """

    item: Item
    losses: torch.Tensor
    is_trained: torch.Tensor
    block_length: int

    @property
    def described(self) -> str:
        """The mean loss of the tokens that training has a loss of, and which they are."""
        length = len(self.item["input_ids"])
        part = "" if length == self.block_length else f"the first {length:,} tokens of "
        loss = self.losses[self.is_trained].mean().item() if self.is_trained.any() else self.losses.mean().item()
        return f"loss {loss:.4f} on {part}the run's first block"


@torch.no_grad()
def reference_losses(trainer: PretrainingTrainer) -> ReferenceLosses:
    """Those of the run's first block; called on every process.

    Each token is compared, also where training masks it.
    """
    share = trainer.plan.batch.sequence_parallel_size
    block = trainer.data.train[int(trainer.data.stream.block_ids(0, 1)[0])]
    length = min(MOST_TOKENS, len(block["input_ids"])) // share * share
    item: Item = {name: block[name][:length] for name in ("input_ids", "position_ids") if name in block}
    item["labels"] = item["input_ids"]
    batch = {name: values.to(trainer.args.device) for name, values in trainer.collate([item]).items()}
    engine = trainer.model_wrapped
    was_training = engine.training
    engine.eval()
    with trainer.compute_loss_context_manager(), torch.compiler.set_stance("force_eager"):
        tokens = trainer.token_losses(engine, batch, in_tiles=trainer.has_loss_tiles)
    engine.train(was_training)
    parts = [torch.empty_like(tokens.losses) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tokens.losses.contiguous())
    losses = torch.cat(parts[:share], dim=1)[0].cpu()  # the first processes share the block, the others have it again
    return ReferenceLosses(
        item,
        losses[_predicted(item["labels"])],
        is_trained=_predicted(block["labels"][:length])[: length - 1],
        block_length=len(block["input_ids"]),
    )


def _predicted(labels: torch.Tensor) -> torch.Tensor:
    """Whether there is a loss at each place of a block, which is that of the token after it."""
    return collate_targets([{"labels": labels}])["labels"][0] != IGNORED_LABEL


def verify_export(
    trainer: PretrainingTrainer, folder: Path, weights: Mapping[str, torch.Tensor], live: ReferenceLosses
) -> str | None:
    """Why the model in a folder is not the one in training, None when it is; called on one process."""
    name = first_mismatched_tensor(folder, weights)
    if name is not None:
        return f"{name} is not as it was written"
    try:
        with _without_partitioning(trainer.args.hf_deepspeed_config):
            losses = exported_losses(folder, live.item)
    except Exception as error:  # each library has errors of its own for what it cannot open
        return f"it cannot be opened ({' '.join(str(error).split())})"
    difference = (losses - live.losses).square().mean().sqrt().item()
    most = MOST_NATS["bf16" if trainer.args.tf32 else trainer.plan.precision]
    if not difference <= most:
        return (
            f"its loss on a block is {losses.mean():.6f}, in training it is {live.losses.mean():.6f} (by token they "
            f"differ by {difference:.2g}, more than {most:g})"
        )
    names = changed_fields(folder, trainer.model.config)
    return f"its config.json has another {', '.join(names)}" if names else None


def first_mismatched_tensor(folder: Path, weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor of a folder that is not, to the bit, the one that was gathered."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                if not _has_same_bits(opened.get_tensor(name), weights[name]):
                    return name
    return None


def _has_same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare bytes: as values, NaN is not equal to itself, and 0.0 is equal to -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first_bytes, second_bytes = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(first_bytes, second_bytes)


def non_finite_weight(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first weight that has a NaN or an Inf."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def changed_fields(folder: Path, config: PreTrainedConfig) -> list[str]:
    """The fields of a folder's config.json that are not those of the model in training.

    A model that is young does not show in its losses yet that its positions turn too fast.
    """
    opened = AutoConfig.from_pretrained(folder).to_dict()
    names = [name for name, value in config.to_dict().items() if name not in NOT_COMPARED and opened.get(name) != value]
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))  # transformers 5 looks not at this one
    return names + ["rope_theta"] * (written["rope_theta"] != config.rope_parameters["rope_theta"])


@torch.no_grad()
def exported_losses(folder: Path, item: Item) -> torch.Tensor:
    """The losses of the predicted tokens of `item` by the model in a folder, which transformers opens."""
    with torch.random.fork_rng():
        # Eager, which no process shares with others, as sdpa and flash attention may be here.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
    model.config.use_cache = False  # with a cache, positions that start again would not keep documents apart
    model = model.to(_device_with_room(model))
    batch = {name: values.to(model.device) for name, values in collate_targets([item]).items()}
    tokens = token_losses(model(**model_inputs(batch, in_one_row=False)), batch["labels"])
    losses = tokens.losses[tokens.is_predicted].cpu()
    del model, tokens
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # NCCL allocates beside what torch keeps
    return losses


@contextmanager
def _without_partitioning(hf_deepspeed_config: object) -> Iterator[None]:
    """Let models be opened whole: transformers would partition them over the processes, of which one is here."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(hf_deepspeed_config)


def _device_with_room(model: PreTrainedModel) -> str:
    """The GPU if the training left room on it, otherwise the CPU, where the weights stay in the mapped file."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    return "cuda" if model.get_memory_footprint() * ROOM_BESIDE_WEIGHTS < free_bytes else "cpu"
