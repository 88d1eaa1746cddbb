"""Who keeps which numbers: as DeepSpeed counts them, for any shapes, stages and any two numbers of processes."""

import random

import pytest
import torch
from deepspeed.runtime.utils import align_dense_tensors
from deepspeed.utils.zero_to_fp32 import zero3_partitioned_param_info

from pretraining.runs.export.zero_layout import ZeroLayout, overlapping_spans, zero_layout
from tests.programs.shards import merge


def random_parameters(generator: random.Random) -> dict[str, torch.Tensor]:
    """Of 1 to 40 numbers, so that many have fewer than there are processes."""
    sizes = [generator.randint(1, generator.choice((3, 40))) for _ in range(generator.randint(1, 7))]
    numbers = torch.arange(1.0, 1 + sum(sizes)).split(sizes)
    return {f"p{i}": tensor for i, tensor in enumerate(numbers)}


def random_sub_groups(names: list[str], generator: random.Random) -> list[list[str]]:
    borders = sorted(generator.sample(range(1, len(names)), generator.randint(0, len(names) - 1)))
    return [names[first:last] for first, last in zip([0, *borders], [*borders, len(names)], strict=True)]


Flats = list[list[torch.Tensor]]


def partitioned(stage: int, parameters: dict[str, torch.Tensor], groups: list[list[str]], processes: int) -> Flats:
    """The flat tensors [process][buffer], with padding that no number is."""
    cut = cut_each if stage == 3 else cut_all
    flats: Flats = [[] for _ in range(processes)]
    for names in groups:
        for flat, part in zip(flats, cut([parameters[name] for name in names], processes), strict=True):
            flat.append(part)
    return flats


def cut_each(parameters: list[torch.Tensor], processes: int) -> list[torch.Tensor]:
    parts: Flats = [[] for _ in range(processes)]
    for parameter in parameters:
        length, padding = zero3_partitioned_param_info(parameter.numel(), processes)
        assert length * processes == parameter.numel() + padding
        padded = torch.nn.functional.pad(parameter, (0, padding), value=torch.nan)
        for part, numbers in zip(parts, padded.split(length), strict=True):
            part.append(numbers)
    return [torch.cat(part) for part in parts]


def cut_all(parameters: list[torch.Tensor], processes: int) -> list[torch.Tensor]:
    flat = torch.cat(align_dense_tensors(parameters, 2 * processes))
    flat[sum(parameter.numel() for parameter in parameters) :] = torch.nan
    return list(flat.split(len(flat) // processes))


def sizes_of(parameters: dict[str, torch.Tensor], groups: list[list[str]]) -> list[dict[str, int]]:
    return [{name: parameters[name].numel() for name in names} for names in groups]


def copy_own(process: int, flats: list[torch.Tensor], targets: ZeroLayout, saved: Flats, sources: ZeroLayout) -> None:
    for name, piece in targets.own_pieces(process):
        for span in overlapping_spans(piece, sources.pieces[name]):
            numbers = saved[span.source_rank][sources.buffer_of(name)].narrow(0, span.source_offset, span.length)
            flats[piece.buffer].narrow(0, span.target_offset, span.length).copy_(numbers)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("saved_in", [1, 3])
@pytest.mark.parametrize("saved_by", range(1, 7))
def test_weights_of_some_processes_reach_any_others(saved_by: int, saved_in: int, stage: int) -> None:
    """DeepSpeed's own reader finds the parameters in what the spans make of DeepSpeed's own partitions."""
    generator = random.Random(saved_by)
    for processes in range(1, 7):
        for _ in range(15):
            parameters = random_parameters(generator)
            old, new = (random_sub_groups(list(parameters), generator) for _ in range(2))
            saved = partitioned(saved_in, parameters, old, saved_by)
            sources = zero_layout(saved_in, sizes_of(parameters, old), num_processes=saved_by)
            targets = zero_layout(stage, sizes_of(parameters, new), num_processes=processes)
            flats = [[torch.full((length,), -1.0) for length in targets.buffer_lengths] for _ in range(processes)]
            for of_one, expected in zip(flats, partitioned(stage, parameters, new, processes), strict=True):
                assert [flat.shape for flat in of_one] == [flat.shape for flat in expected]
            for process, of_one in enumerate(flats):
                copy_own(process, of_one, targets, saved, sources)
            shapes = [{name: parameters[name].shape for name in names} for names in new]
            for name, tensor in merge(shapes, flats, is_stage_3=stage == 3).items():
                assert torch.equal(tensor, parameters[name])
            num_numbers = sum(int((flat >= 0).sum()) for of_one in flats for flat in of_one)
            assert num_numbers == sum(tensor.numel() for tensor in parameters.values()), "padding was copied"
            ends = [
                [max((flat >= 0).nonzero().flatten().tolist(), default=-1) + 1 for flat in of_one] for of_one in flats
            ]
            assert ends == targets.used_lengths(processes)
