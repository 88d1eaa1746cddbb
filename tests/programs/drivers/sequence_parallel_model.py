"""Forward and backward of a tiny model in fp64, by a group of processes and by each alone; prints what differs most.

torchrun --nproc_per_node=2 sequence_parallel_model.py
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pretraining.training.data.batch import Batch, attention_bounds, collate_targets, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.document_attention import use_document_attention
from pretraining.training.model.sequence_parallel import join_sequence_group, part_of_batch, share_attention

BATCH, LENGTH, VOCABULARY = 2, 24, 50
# Where documents begin: one is longer than a process's part, one begins at the cut, one has a single token.
BEGINS = [[0, 5, 20, 21], [0, 12]]


def make_batch(*, within_documents: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, 7:13] = IGNORED_LABEL
    items = [{"input_ids": row, "labels": mask} for row, mask in zip(ids, labels, strict=True)]
    if within_documents:
        ends = [[*begins[1:], LENGTH] for begins in BEGINS]
        lengths = [[end - begin for begin, end in zip(*row, strict=True)] for row in zip(BEGINS, ends, strict=True)]
        rows = [[position for length in row for position in range(length)] for row in lengths]
        items = [{**item, "position_ids": torch.tensor(row)} for item, row in zip(items, rows, strict=True)]
    return collate_targets(items)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, use_cache=False, **shape)
    return LlamaForCausalLM(config).double()


def loss_and_gradients(model: LlamaForCausalLM, batch: Batch) -> list[torch.Tensor]:
    inputs = model_inputs(batch, in_one_row=False) | attention_bounds(batch, block_length=LENGTH)
    labels = batch["labels"].flatten()
    loss = cross_entropy(model(**inputs).logits.flatten(0, 1), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def main() -> None:
    dist.init_process_group("gloo")
    group = join_sequence_group(2, timeout_seconds=60)
    ordinary = ALL_ATTENTION_FUNCTIONS["sdpa"]
    for within_documents in (False, True):
        batch = make_batch(within_documents=within_documents)
        ALL_ATTENTION_FUNCTIONS["sdpa"] = ordinary
        alone = loss_and_gradients(make_model(), batch)
        model = make_model()
        if within_documents:
            use_document_attention(model)
        share_attention(model.config._attn_implementation, group)
        together = loss_and_gradients(model, part_of_batch(batch, rank=group.rank, size=group.size))
        for tensor in together:
            dist.all_reduce(tensor)
        differences = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(together, alone, strict=True)]
        if dist.get_rank() == 0:
            sys.stdout.write(
                f"within_documents={within_documents} loss={alone[0]:.4f} difference={max(differences):.2e}\n"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
