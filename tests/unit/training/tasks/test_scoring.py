"""Log-likelihoods in batches equal those of each text by itself, however many processes share the batches."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.training.data.batch import Batch
from pretraining.training.metrics.evaluation import losses_by
from pretraining.training.model.loss import TokenLosses, token_losses
from pretraining.training.tasks.requests import BatchShapes, Request, TaskRequests
from pretraining.training.tasks.scoring import RequestScorer, length_multiple
from tests.rounding import FP32_ROUNDOFF, path_length

POSITIONS = 100
SHAPES = BatchShapes(256, POSITIONS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=300, max_position_embeddings=POSITIONS)).eval()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, POSITIONS, 40).tolist()
    return [
        Request(random.integers(0, 300, length).astype(np.int32), int(random.integers(1, length))) for length in lengths
    ]


def scored(
    model: LlamaForCausalLM, requests: Sequence[Request], shapes: BatchShapes = SHAPES
) -> tuple[np.ndarray, np.ndarray]:
    return RequestScorer(losses_by(model), shapes, CPU).requests(requests)


def test_each_log_likelihood_is_that_of_the_text_alone(model: LlamaForCausalLM, requests: list[Request]) -> None:
    rounding = 2 * path_length(model.config, POSITIONS) * FP32_ROUNDOFF
    for shapes in (SHAPES, BatchShapes(1, POSITIONS), BatchShapes(1000, POSITIONS, multiple=64, num_parts=3)):
        log_likelihoods, are_greedy = scored(model, requests, shapes)
        assert log_likelihoods.dtype == np.float64
        for request, found, is_greedy in zip(requests, log_likelihoods, are_greedy, strict=True):
            with torch.no_grad():
                rows = model(input_ids=torch.from_numpy(request.ids[None]).long()).logits[0].double().log_softmax(-1)
            first, ids = request.num_context_tokens, torch.from_numpy(request.ids).long()
            expected = rows[first - 1 : -1].gather(1, ids[first:, None]).sum().item()
            assert found == pytest.approx(expected, rel=rounding)
            assert is_greedy == bool((rows[first - 1 : -1].argmax(1) == ids[first:]).all())


def test_greedy_texts_are_found(model: LlamaForCausalLM) -> None:
    """What the model itself writes, and the same with another last token."""
    ids = [5, 7]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 300]
    _, are_greedy = scored(model, [Request(np.array(row, np.int32), 2) for row in (ids, other)])
    assert are_greedy.tolist() == [True, False]


def test_every_process_runs_as_many_forwards(monkeypatch: pytest.MonkeyPatch, requests: list[Request]) -> None:
    """The sums of three processes are those of one; no request is counted twice."""
    num_batches = len(list(SHAPES.batches(requests)))
    assert num_batches % 3 > 0, "the last process must repeat a batch"
    calls: list[int] = []

    def losses_of(batch: Batch) -> TokenLosses:
        calls.append(len(batch["labels"]))
        logits = torch.nn.functional.one_hot(batch["input_ids"] * 7 % 300, 300).float()
        return token_losses(SimpleNamespace(logits=logits), batch["labels"])

    whole = RequestScorer(losses_of, SHAPES, CPU).requests(requests)
    assert len(calls) == num_batches
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: kept.append(sums.clone()))
    for group in range(3):
        calls.clear()
        RequestScorer(losses_of, SHAPES, CPU, group=group, num_groups=3).requests(requests)
        assert len(calls) == -(-num_batches // 3)
    losses, num_wrong = sum(kept).numpy().T  # type: ignore[union-attr]
    assert (-losses).tolist() == whole[0].tolist()
    assert (num_wrong == 0).tolist() == whole[1].tolist()


def test_each_task_gets_its_own_results(model: LlamaForCausalLM, requests: list[Request]) -> None:
    def metrics(log_likelihoods: np.ndarray, are_greedy: np.ndarray) -> dict[str, float]:
        return {"sum": float(log_likelihoods.sum()), "num": len(are_greedy)}

    tasks = [TaskRequests("a", requests[:7], metrics), TaskRequests("b", requests[7:], metrics)]
    found = RequestScorer(losses_by(model), SHAPES, CPU).tasks(tasks)
    whole, _ = scored(model, requests)
    assert list(found) == ["task/a/sum", "task/a/num", "task/b/sum", "task/b/num"]
    assert found["task/a/sum"] == float(whole[:7].sum())
    assert (found["task/b/sum"], found["task/b/num"]) == (float(whole[7:].sum()), len(requests) - 7)


def test_only_a_gpu_pads() -> None:
    assert (length_multiple(CPU), length_multiple(torch.device("cuda"))) == (1, 64)
