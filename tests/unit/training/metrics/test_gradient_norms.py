"""Each parameter of a Llama is in the group of its module. The norms are tested in whole runs, under ZeRO-3."""

import pytest
import torch
from torch.nn import Embedding
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from pretraining.training.metrics.gradient_norms import GROUPS, GradientNorms, group_of
from tests.rounding import TINY

KINDS = {Embedding: "embeddings", LlamaAttention: "attention", LlamaMLP: "mlp", LlamaRMSNorm: "norms"}


@pytest.mark.parametrize("fields", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_each_parameter_is_in_the_group_of_its_module(fields: dict[str, bool]) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**TINY.to_dict(), **fields}))
    groups = {id(parameter): group_of(name) for name, parameter in model.named_parameters()}
    for module in model.modules():
        for parameter in module.parameters() if type(module) in KINDS else ():
            assert groups.pop(id(parameter), KINDS[type(module)]) == KINDS[type(module)]
    assert set(groups.values()) == (set() if fields.get("tie_word_embeddings") else {"head"})
    assert set(KINDS.values()) | {"head"} == set(GROUPS)


def test_what_is_not_an_engine_is_not_watched() -> None:
    """As after a launcher that drops the config, which is reported when training begins."""
    model: object = torch.nn.Linear(2, 2)
    assert GradientNorms(model).metrics() == {}  # type: ignore[arg-type]
