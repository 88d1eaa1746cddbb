"""A run of pretrain.py on a CPU that pretends to be a GPU (host_waits_accelerator.py): counts what the host waits for.

python3 -m benchmarks.host_waits_run RESULT --flags of pretrain.py. The steps have four micro steps. The third one
of the last step is reported: neither it nor its neighbors read data or update weights.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from benchmarks.host_waits_accelerator import GATHERS, OperationLog, Timeline, Waits, install, reads_noted
from benchmarks.started_run import MeasuringCallback, measure_run
from pretraining.cli.program import run_program
from pretraining.planning.flops import num_parameters
from pretraining.training.trainer.trainer import PretrainingTrainer

NUM_STEPS = 4  # DeepSpeed's timer starts in the third, and the order of weights is known after the first
REPORTED_MICRO_STEP = 2
GATHER = "_PartitionedParameterCoordinator__all_gather_params"


class CountWaits(MeasuringCallback):
    """Counts the waits of one micro step."""

    def __init__(self, trainer: PretrainingTrainer, timeline: Timeline) -> None:
        self._trainer = trainer
        self._timeline = timeline
        self._open = ExitStack()
        self._found = Waits()
        self._num_ended = 0
        self._gathers_follow_step = True

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Mark the start of each layer, and the path of the gradients."""
        zero = self._trainer.model_wrapped.optimizer
        for layer in self._trainer.model.model.layers:
            layer.register_forward_pre_hook(lambda *_: self._timeline.start_layer())
            layer.register_full_backward_pre_hook(lambda *_: self._timeline.start_layer())
        zero.step = self._checking_order(zero.step)
        for name in ("reduce_ready_partitions_and_remove_grads", "independent_gradient_partition_epilogue"):
            setattr(zero, name, self._moving_gradients(getattr(zero, name)))
        setattr(
            PartitionedParameterCoordinator,
            GATHER,
            self._counting_late(getattr(PartitionedParameterCoordinator, GATHER)),
        )

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        """Log the operations of the last step; the step before it has ended with a wait for everything."""
        self._num_ended = 0
        if state.global_step == NUM_STEPS - 1:
            self._timeline.finish_all()
            self._open.enter_context(OperationLog(self._timeline))
            self._open.enter_context(reads_noted(self._timeline))

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        """A micro step has ended, which is not the last of its step."""
        found = self._timeline.take()
        if self._num_ended == REPORTED_MICRO_STEP:
            self._found = found
        self._num_ended += 1

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """End the log."""
        self._open.close()

    def result(self) -> dict[str, Any]:
        """The waits of the micro step, and the number of parameters."""
        return {
            **vars(self._found),
            "gathers_follow_step": self._gathers_follow_step,
            "num_parameters": num_parameters(self._trainer.run_config.config),
        }

    def _checking_order(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Note whether the stream that gathers weights waits for the step that writes them."""

        def checking(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            reached = self._timeline.reached
            gathers = reached.get(GATHERS, reached["compute"])  # without overlap_comm there is one stream
            self._gathers_follow_step = gathers.get("compute") == reached["compute"].get("compute")
            return result

        return checking

    def _moving_gradients(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def moving(*args: Any, **kwargs: Any) -> Any:
            self._timeline.moves_gradients = True
            try:
                return method(*args, **kwargs)
            finally:
                self._timeline.moves_gradients = False

        return moving

    def _counting_late(self, gather: Callable[..., Any]) -> Callable[..., Any]:
        """Count the weights of layers that are gathered because they are needed now, not ahead."""

        def counting(coordinator: Any, weights: Any, forward: bool) -> Any:
            caller = sys._getframe(1).f_locals
            module = caller.get("current_submodule")
            if weights is not caller.get("params_to_prefetch") and module in self._layers:
                missing = [weight for weight in weights if weight.ds_status.name == "NOT_AVAILABLE"]
                self._timeline.waits.late_weights += sum(weight.ds_numel for weight in missing)
            return gather(coordinator, weights, forward)

        return counting

    @property
    def _layers(self) -> list[Any]:
        return list(self._trainer.model.model.layers)


def main(argv: Sequence[str]) -> None:
    """Train, and write the waits."""
    timeline = Timeline()
    install(timeline)
    measure_run(argv, lambda trainer: CountWaits(trainer, timeline))


if __name__ == "__main__":
    run_program(main)
    sys.exit()
