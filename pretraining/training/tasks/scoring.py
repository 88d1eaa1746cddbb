"""Score the requests of tasks: every process computes some of the batches, all of them equally many.

Under ZeRO-3 each forward gathers the weights from all processes, so none may have one more. Which requests are in a
batch does not depend on the number of processes, and neither do the results, but for the rounding of the machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretraining.training.data.batch import Batch
from pretraining.training.data.dataset import IGNORED_LABEL
from pretraining.training.model.loss import TokenLosses
from pretraining.training.tasks.requests import BatchShapes, Request, TaskRequests

GPU_LENGTH_MULTIPLE = 64  # few shapes, so that few plans of attention kernels are made; on a CPU padding costs time


@dataclass(frozen=True)
class RequestScorer:
    """Computes the token losses of batches, with shifted labels, on `device`; every process must use it alike.

    Processes of the same `group` (of sequence parallelism) share each batch.
    """

    losses_of: Callable[[Batch], TokenLosses]
    shapes: BatchShapes
    device: torch.device
    group: int = 0
    num_groups: int = 1

    def tasks(self, tasks: Sequence[TaskRequests]) -> dict[str, float]:
        """The metrics of all tasks as `task/NAME/METRIC`, the same on every process."""
        log_likelihoods, are_greedy = self.requests([request for task in tasks for request in task.requests])
        metrics: dict[str, float] = {}
        start = 0
        for task in tasks:
            part = slice(start, start := start + len(task.requests))
            found = task.metrics(log_likelihoods[part], are_greedy[part])
            metrics |= {f"task/{task.name}/{name}": value for name, value in found.items()}
        return metrics

    @torch.no_grad()
    def requests(self, requests: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihoods in nats, fp64 [requests], and whether each continuation is greedy, bool [requests].

        A token counts as greedy where no other has a higher logit, as in the accuracy of an evaluation.
        """
        batches = list(self.shapes.batches(requests))
        sums = torch.zeros(len(requests), 2, dtype=torch.float64, device=self.device)  # loss, tokens not greedy
        for start in range(0, len(batches), self.num_groups):
            number = start + self.group
            numbers = batches[min(number, len(batches) - 1)]  # a group without a batch repeats the last one
            width = self.shapes.width(requests[numbers[0]])
            tokens = self.losses_of(_batch([requests[one] for one in numbers], width))
            if number < len(batches):
                is_wrong = tokens.is_predicted & ~tokens.is_correct
                rows = torch.tensor(numbers, device=self.device)
                sums[rows] = torch.stack([values.double().sum(dim=1) for values in (tokens.losses, is_wrong)], dim=1)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        losses, num_wrong = sums.cpu().numpy().T
        return -losses, num_wrong == 0


def _batch(requests: Sequence[Request], width: int) -> Batch:
    """Ids, and at each position the label of the next token, padded on the right: int64 [requests, width].

    Causal attention ignores padding on the right, so no mask is needed.
    """
    ids, labels = np.zeros((len(requests), width), np.int64), np.full((len(requests), width), IGNORED_LABEL, np.int64)
    for row, request in enumerate(requests):
        end, first = request.num_inputs, request.num_context_tokens
        ids[row, :end] = request.ids[:-1]
        labels[row, first - 1 : end] = request.ids[first:]
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def length_multiple(device: torch.device) -> int:
    """The multiple to which batches are padded on a device."""
    return GPU_LENGTH_MULTIPLE if device.type == "cuda" else 1
