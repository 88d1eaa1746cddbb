"""Who keeps which numbers: as DeepSpeed counts them, for any shapes and any two numbers of processes."""

import random

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import zero3_partitioned_param_info

from pretraining.training.checkpoint.partitions import overlapping_spans, partition_layouts
from tests.programs.shards import merge


def random_parameters(generator: random.Random) -> dict[str, torch.Tensor]:
    """Of 1 to 40 numbers, so that many have fewer than there are processes."""
    sizes = [generator.randint(1, generator.choice((3, 40))) for _ in range(generator.randint(1, 7))]
    numbers = torch.arange(1.0, 1 + sum(sizes)).split(sizes)
    return {f"p{i}": tensor for i, tensor in enumerate(numbers)}


def random_sub_groups(names: list[str], generator: random.Random) -> list[list[str]]:
    borders = sorted(generator.sample(range(1, len(names)), generator.randint(0, len(names) - 1)))
    return [names[first:last] for first, last in zip([0, *borders], [*borders, len(names)], strict=True)]


def partitioned(parameters: dict[str, torch.Tensor], groups: list[list[str]], processes: int) -> list[list]:
    """The flat tensors [process][sub-group], with padding that no number is."""
    flats: list[list] = [[] for _ in range(processes)]
    for names in groups:
        parts: list[list] = [[] for _ in range(processes)]
        for name in names:
            length, padding = zero3_partitioned_param_info(parameters[name].numel(), processes)
            assert length * processes == parameters[name].numel() + padding
            padded = torch.nn.functional.pad(parameters[name], (0, padding), value=torch.nan)
            for part, numbers in zip(parts, padded.split(length), strict=True):
                part.append(numbers)
        for flat, part in zip(flats, parts, strict=True):
            flat.append(torch.cat(part))
    return flats


def sizes_of(parameters: dict[str, torch.Tensor], groups: list[list[str]]) -> list[dict[str, int]]:
    return [{name: parameters[name].numel() for name in names} for names in groups]


@pytest.mark.parametrize("saved_by", range(1, 7))
def test_weights_of_some_processes_reach_any_others(saved_by: int) -> None:
    """DeepSpeed's own reader finds the parameters in what the spans make of DeepSpeed's own partitions."""
    generator = random.Random(saved_by)
    for processes in range(1, 7):
        for _ in range(15):
            parameters = random_parameters(generator)
            old, new = (random_sub_groups(list(parameters), generator) for _ in range(2))
            saved = partitioned(parameters, old, saved_by)
            kept = partition_layouts(sizes_of(parameters, old), num_processes=saved_by)
            places = partition_layouts(sizes_of(parameters, new), num_processes=processes)
            flats = [
                [torch.full_like(flat, -1) for flat in of_one] for of_one in partitioned(parameters, new, processes)
            ]
            for process in range(processes):
                for name, place in places.items():
                    for span in overlapping_spans(process, place, kept[name]):
                        numbers = saved[span.source_rank][kept[name].sub_group].narrow(
                            0, span.source_offset, span.length
                        )
                        flats[process][place.sub_group].narrow(0, span.target_offset, span.length).copy_(numbers)
            shapes = [{name: parameters[name].shape for name in names} for names in new]
            for name, tensor in merge(shapes, flats).items():
                assert torch.equal(tensor, parameters[name])
            num_numbers = sum(int((flat >= 0).sum()) for of_one in flats for flat in of_one)
            assert num_numbers == sum(tensor.numel() for tensor in parameters.values()), "padding was copied"
