"""Read the weights of a parent model, one tensor at a time, into a model that ZeRO-3 has partitioned, or a whole one.

Each process copies its own partition out of the memory-mapped files, so all processes together read the weights once.
Below stage 3 each process copies all of them, one tensor at a time, from the same pages of the machine.
Only zero.Init sends something: it broadcasts each tensor, not yet initialized, from rank 0 when it is created. The
alternative, one process that reads and broadcasts, needs a gather and a broadcast per tensor and works where only one
machine has the files. But every machine has them: each reads a Hub model or shared folder for the config, and the
hashes of all machines are compared.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import deepspeed
import torch
from safetensors import SafetensorError, safe_open
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import (
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    prevent_arange_dtype_change,
)
from transformers.modeling_utils import local_torch_dtype

from pretraining.cli.arguments.pretrain import ParentModel, PretrainArguments
from pretraining.errors import UserError
from pretraining.runs.export.zero_shards import ShardedWeight, open_shards
from pretraining.system.launchers import local_rank
from pretraining.training.distributed.collectives import all_gather_objects
from pretraining.training.distributed.deepspeed_internals import fill_parameter
from pretraining.training.model.parent import vocabulary_of, weight_files, weight_hashes

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Of Llama models that were saved before transformers 4.32: it is computed from the config.
IGNORED_SUFFIX = ".rotary_emb.inv_freq"
DTYPES = {"F32", "F16", "BF16", "F64"}
SHOWN_TENSORS = 3


class ParentWeights:
    """The tensors of a parent model by name, for a model with this config.

    With `grows`, its vocabulary can be larger than that of the parent. Each new row of the embeddings, and of an untied
    head, is the mean of the parent's rows: so a new token never has a larger logit than the likeliest token, and the
    other predictions hardly change at first, where random rows can take nearly all probability (John Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). Rows of the parent behind its last token, which
    only pad its vocabulary, count as new.

    Raises:
        UserError: when the files cannot be read, or are not those of the config.
    """

    def __init__(self, parent: ParentModel, config: LlamaConfig, *, grows: bool) -> None:
        self.config, self._parent, self._grows = config, parent, grows
        self._paths: dict[str, Path] = {}
        self._shards: dict[str, ShardedWeight] = {}
        if parent.only_shards:
            _, self._shards = open_shards(Path(parent.folder))
            self._shapes = {name: tuple(weight.shape) for name, weight in self._shards.items()}
        else:
            self._shapes = dict(self._open_files())
        self._check_names()
        self._num_tokens = self._count_tokens() if grows else config.vocab_size

    def read(self, name: str) -> torch.Tensor:
        """A tensor in the dtype of its file; where nothing is added to it, it is memory-mapped.

        Raises:
            UserError: when it cannot be read.
        """
        try:
            if name in self._shards:
                return self._grown(name, self._shards[name].contiguous())
            with safe_open(self._paths[name], framework="pt") as opened:  # open while the tensor is: it is not kept
                return self._grown(name, opened.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise self.error(f"{name} cannot be read ({' '.join(str(error).split())})") from None

    def check_tied(self) -> None:
        """Reject a head that differs from the embeddings, where the config ties them.

        Raises:
            UserError: when it does.
        """
        is_double = self.config.tie_word_embeddings and HEAD in self._paths
        if is_double and not torch.equal(self.read(EMBEDDING), self.read(HEAD)):
            raise self.error(
                f"{HEAD} differs from {EMBEDDING}, which its config ties",
                "set tie_word_embeddings to false in a copy of its config.json",
            )

    def _grown(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor with the rows of the new vocabulary."""
        if name not in (EMBEDDING, HEAD) or self._num_tokens == self.config.vocab_size:
            return weight
        grown = weight.new_empty(self.config.vocab_size, weight.shape[1])
        known = weight[: self._num_tokens]
        grown[: self._num_tokens] = known
        grown[self._num_tokens :] = known.mean(dim=0, dtype=torch.float32).to(weight.dtype)
        return grown

    def _count_tokens(self) -> int:
        num_rows, folder = self._shapes[EMBEDDING][0], self._parent.tokenizer_dir
        return num_rows if folder is None else min(num_rows, max(vocabulary_of(Path(folder)).values()) + 1)

    def _open_files(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor, from the headers of the files."""
        for path in weight_files(Path(self._parent.folder)):
            try:
                with safe_open(path, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        found = opened.get_slice(name)
                        if name.endswith(IGNORED_SUFFIX):
                            continue
                        if found.get_dtype() not in DTYPES:
                            raise self.error(
                                f"{name} is {found.get_dtype()}, which is not trained (quantized?)",
                                "use the model in bf16, fp16 or fp32",
                            )
                        self._paths[name] = path
                        yield name, tuple(found.get_shape())
            except (OSError, SafetensorError) as error:
                raise self.error(f"{path.name} cannot be read ({' '.join(str(error).split())})") from None

    def _check_names(self) -> None:
        expected = expected_shapes(self.config)
        missing = [name for name in expected if name not in self._shapes]
        extra = [name for name in self._shapes if name not in expected and name != HEAD]
        if missing or extra:
            words = f"{_some(missing)} missing" if missing else f"{_some(extra)} not in a Llama of its config"
            raise self.error(words, "use a complete Llama model")
        for name, shape in expected.items():
            if not self._fits(name, self._shapes[name], shape):
                raise self.error(f"{name} has the shape {self._shapes[name]}, its config needs {shape}")

    def _fits(self, name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> bool:
        """Whether a tensor has its shape, or can get it by more rows of the vocabulary."""
        return found == needed or (
            self._grows and name in (EMBEDDING, HEAD) and found[0] < needed[0] and found[1:] == needed[1:]
        )

    def error(self, problem: str, remedy: str = "copy or download the model again") -> UserError:
        """A problem of these weights as one line."""
        return UserError(f"{self._parent.place}: {problem}; {remedy}")


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a model, of tied ones once."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def initial_weights(
    arguments: PretrainArguments, config: LlamaConfig, recorded: dict[str, str] | None
) -> dict[str, str] | None:
    """The hashes of the files of the parent's weights, once names and shapes are those of the config.

    One process of each machine reads the files. The others take those that a run to be resumed has `recorded`, until
    `agreed_hashes`. Trial steps have none.

    Raises:
        UserError: when names or shapes are others, before a weight is read.
    """
    if arguments.parent is None:
        return None
    ParentWeights(arguments.parent, config, grows=arguments.model.grow_vocabulary)
    if arguments.plan.profile_plan:
        return None
    return weight_hashes(arguments.parent) if local_rank() == 0 else recorded


def agreed_hashes(parent: ParentModel | None, hashes: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The hashes of the files that all machines see; called on every process.

    Raises:
        UserError: when machines see different files.
    """
    if parent is None:
        return None
    first, *others = [found for found, rank in all_gather_objects((hashes, local_rank())) if rank == 0]
    if any(found != first for found in others):
        raise UserError(
            f"{parent.place}: the processes see different files; use a folder that all machines share, or a @REVISION"
        )
    return first


def load_parent(
    weights: ParentWeights, attention_implementation: str, *, dtype: torch.dtype, device: torch.device
) -> LlamaForCausalLM:
    """A model with the parent's weights, under ZeRO-3 partitioned as it is created; called on every process.

    Raises:
        UserError: when they cannot be read.
    """
    weights.check_tied()
    own = copy.deepcopy(weights.config)
    own.dtype, own._attn_implementation = dtype, attention_implementation
    with ExitStack() as contexts:
        contexts.enter_context(no_init_weights())
        if is_deepspeed_zero3_enabled():
            contexts.enter_context(prevent_arange_dtype_change())
            contexts.enter_context(deepspeed.zero.Init(config_dict_or_path=deepspeed_config()))
        else:
            contexts.enter_context(device)
            contexts.enter_context(local_torch_dtype(dtype))
        model = LlamaForCausalLM(own)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        fill_parameter(parameter, weights.read(name))
    return model


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_TENSORS]) + (", ..." if len(names) > SHOWN_TENSORS else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
