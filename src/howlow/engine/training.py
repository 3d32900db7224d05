"""Fine-tuning: one optimizer step at a time.

A step's loss is the summed negative log-likelihood of all its target tokens divided by their number, over all its
micro-batches together: accumulation changes the memory, not the gradient. AdamW, clipping by the global L2 norm, and a
schedule that is a plain function of the step, so that a resumed training needs no schedule state.

Precision: `fp32`; `bf16`: autocast to bf16 over a bf16 base, the adapter's own weights in fp32; `fp16-autocast`: fp32
weights, autocast to fp16, the loss scaled so that small gradients survive (the paper's mode, section III.D). A step
whose scaled gradients overflow is skipped, as torch's scaler does.

A step does not read the device: `Trainer.step` returns tensors, and its caller reads them once (`Trainer.outcome`).
There is one exception. With loss scaling on a CPU, torch's scaler itself reads whether gradients overflowed. (AdamW
reads its step counters there, but they are kept on the host; on CUDA it is one fused kernel that reads nothing.)

Where the execution says so, a step is recorded before the training, once for each shape of batch, and then replayed
(`Trainer.record`, `howlow.engine.step_graphs`).

Where a trial has several devices, a step's examples are split over them. One process leads: its trainer alone moves
the weights, and those of the others help (`Trainer.help`, `howlow.engine.sharding`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from howlow.engine import sharding
from howlow.engine.execution import Running
from howlow.engine.layouts import Batch
from howlow.engine.loss import target_losses
from howlow.engine.model import trainable
from howlow.engine.shares import DevicePart, SplitBatch
from howlow.engine.step_graphs import Recorder, StepGraphs, kept_weights

MAX_SKIPPED_STEPS = 20
_TOO_LARGE = "without overflow"
"""torch's words where a number of Python's, such as a learning rate, does not fit into a tensor's type."""


class DivergedError(Exception):
    """Numbers of the training are not finite, or fp16 gradients overflowed too often in a row."""


@dataclass(frozen=True)
class Optimization:
    """The optimizer's settings."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    total_steps: int = 1

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: a linear warm-up, then constant, or falling to 0 at the end."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        fraction = 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * fraction


@dataclass(frozen=True)
class StepTensors:
    """What one optimizer step did, not yet read from the device.

    loss_sums: (micro_batches,), each one's summed loss. overflowed: whether the scaler skipped the step; None without
    loss scaling.
    """

    step: int
    target_tokens: int
    loss_sums: Tensor
    gradient_norm: Tensor
    overflowed: Tensor | None

    def read(self) -> list[float]:
        """All numbers in one read: the loss sums, the gradient's norm, and 1 or 0 for a skipped step."""
        last = [] if self.overflowed is None else [self.overflowed]
        parts = [self.loss_sums, *(part.reshape(1) for part in (self.gradient_norm, *last))]
        numbers: list[float] = torch.cat(parts).tolist()  # in the widest of their dtypes, so that none is rounded
        return numbers if last else [*numbers, 0.0]


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did."""

    loss: float
    gradient_norm: float | None
    skipped: bool


BeginStep = Callable[[int, Sequence[Batch | SplitBatch]], None]
"""Gives the other devices of a trial their parts of a step, by its number; they then wait for the weights."""


class Trainer:
    """Optimizer and scaler of one training; `step` is the whole loop's body."""

    def __init__(self, running: Running, optimization: Optimization, begin: BeginStep | None = None) -> None:
        """Begin with the weights that train; `begin` hands a step out to other devices, where there are any."""
        execution = running.execution
        self._begin = begin
        self.running = running
        self.parameters = trainable(running.model)
        self.optimization = optimization
        self.device = execution.device
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimization.learning_rate,
            betas=optimization.betas,
            weight_decay=optimization.weight_decay,
            **({"fused": True, "capturable": execution.graphed} if self.device.type == "cuda" else {}),
        )
        self._graphs: StepGraphs | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=execution.scales_loss)
        self.steps_done = 0
        self.skipped_in_a_row = 0

    def step(self, micro_batches: Sequence[Batch | SplitBatch]) -> StepTensors:
        """Forward and backward over the micro-batches, one at a time on the device, then one move of the optimizer.

        The caller reads the result with `outcome` before it does anything with the weights.

        Raises:
            DivergedError: a factor (learning rate, weight decay, alpha) is too large for the type of the weights.
        """
        try:
            return self._step(micro_batches)
        except (RuntimeError, OverflowError) as error:
            if isinstance(error, RuntimeError) and _TOO_LARGE not in str(error):
                raise
            raise DivergedError(
                f"a factor in step {self.steps_done} is too large for its type ({error}); lower the learning rate, the "
                "weight decay or alpha"
            ) from None

    def _step(self, micro_batches: Sequence[Batch | SplitBatch]) -> StepTensors:
        target_tokens = sum(batch.target_tokens for batch in micro_batches)
        self.running.cast_adapters()
        scale = self._loss_scale() / target_tokens
        if self._begin is not None:
            self._begin(self.steps_done, micro_batches)
            sharding.broadcast([*self.parameters.values(), scale])
        own = (batch if isinstance(batch, Batch) else batch.own for batch in micro_batches)
        sums = torch.stack([self.accumulate(batch, scale) for batch in own])
        if self._begin is not None:
            sharding.add_up([*self.parameters.values()], sums)
        self._set_learning_rate()
        norm, overflowed = self._move() if self._graphs is None else self._graphs.move()
        increment_version(self.parameters.values())  # a replay writes weights behind the back of autograd
        self.steps_done += 1
        return StepTensors(self.steps_done - 1, target_tokens, sums, norm, overflowed)

    def accumulate(self, batch: Batch, scale: Tensor) -> Tensor:
        """Forward and backward of a batch: adds to the gradients, times `scale`; returns the summed loss."""
        if self._graphs is not None and self._graphs.has(batch):
            return self._graphs.accumulate(batch, scale)
        return self._pass(batch.to(self.device), scale)

    def help(self, parts: Sequence[DevicePart[Batch]]) -> None:
        """Run this device's parts of a step that another process leads; the gradients are added to those there."""
        scale, sums = torch.zeros((), device=self.device), []
        sharding.broadcast([*self.parameters.values(), scale])
        for part in parts:
            sums.append(self.accumulate(part.batch, scale * part.counts) * part.counts)
        sharding.add_up([*self.parameters.values()], torch.stack(sums))
        self.clear()

    def clear(self) -> None:
        """Drop the gradients, or set them to 0 where recorded steps need them in place."""
        if self._graphs is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._graphs.clear()

    def _pass(self, batch: Batch, scale: Tensor) -> Tensor:
        # also around backward, which recomputes with gradient checkpointing
        with self.running.batch(batch):
            with self.running.autocast():
                losses, scaled = target_losses(self.running.model, batch, self.running.execution.head, scale)
            scaled.backward()  # type: ignore[no-untyped-call]
        return losses.sum()

    def _loss_scale(self) -> Tensor:
        scale: Tensor = self.scaler.scale(torch.ones((), device=self.device))
        return scale

    def _set_learning_rate(self) -> None:
        rate = self.optimization.learning_rate_at(self.steps_done)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _move(self) -> tuple[Tensor, Tensor | None]:
        """Move the weights; returns the gradient's norm, and whether the scaler skipped the step."""
        self.scaler.unscale_(self.optimizer)
        limit, before = self.optimization.max_grad_norm or math.inf, self._loss_scale()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._graphs is None:  # a recorded move does it itself
            self.clear()
        return norm, self._loss_scale() < before if self.scaler.is_enabled() else None

    def record(self, recorder: Recorder, batches: Sequence[Batch]) -> None:
        """Record a step: its pass for the shape of each batch (on the host, the largest first), and its move.

        To be called before the first step and before `restore`. Weights, moments and the scaler are as before.
        """
        scaler = self.scaler.state_dict()
        self._set_gradients(batches[0])
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        self._graphs = StepGraphs(recorder, self.device, self._pass, gradients)
        with kept_weights(self.parameters.values()):
            self._graphs.record_passes(batches)
            self._graphs.record_move(self._move)
        for kept in self.optimizer.state.values():
            torch._foreach_zero_(list(kept.values()))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)  # in place: the recorded move goes on with its tensors

    def _set_gradients(self, batch: Batch) -> None:
        """Give each parameter that has a gradient one that stays in place."""
        self._pass(batch.to(self.device), self._loss_scale())
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad = torch.zeros_like(parameter)

    def outcome(self, moved: StepTensors) -> StepOutcome:
        """Read from the device what the last step did.

        Raises:
            DivergedError: the loss or the gradient is not finite, or too many steps in a row were skipped. The weights
                are then of no use, and must not be saved.
        """
        *sums, norm, overflowed = moved.read()
        loss = 0.0
        for part in sums:
            loss += part / moved.target_tokens
        if not math.isfinite(loss):
            raise DivergedError(f"the loss of step {moved.step} is {loss}")
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflowed else 0
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise DivergedError(f"{MAX_SKIPPED_STEPS} steps in a row were skipped: their fp16 gradients overflow")
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise DivergedError(f"the gradient of step {moved.step} is not finite")
        return StepOutcome(loss, norm if math.isfinite(norm) else None, bool(overflowed))

    def idle(self) -> list[str]:
        """The names of the parameters that have had no gradient in any step."""
        return [name for name, parameter in self.parameters.items() if not self.optimizer.state.get(parameter)]

    def refuse_if_not_finite(self) -> None:
        """To be called after the last step, whose weights no further loss shows.

        Raises:
            DivergedError: a weight, or a moment by which the next step would move it, is not finite.
        """
        moments = [value for kept in self.optimizer.state.values() for value in kept.values()]
        tensors = [*(parameter.detach() for parameter in self.parameters.values()), *moments]
        finite = [torch.isfinite(tensor).all().to(self.device) for tensor in tensors]
        if finite and not bool(torch.stack(finite).all()):
            raise DivergedError(f"after {self.steps_done} steps the weights or AdamW's moments are not finite")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on, except generators: tensors by name, and plain values."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value.detach()
        plain = {
            "steps_done": self.steps_done,
            "skipped_in_a_row": self.skipped_in_a_row,
            "scaler": self.scaler.state_dict(),
        }
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"parameter.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{key}.{name}" in tensors]
            moved = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
            kept = self.optimizer.state.get(parameter)
            if kept:  # recorded steps go on with these tensors
                for key, value in moved.items():
                    kept[key].copy_(value)
            elif keys:
                # A fused AdamW keeps its step counter beside the moments, another one on the CPU.
                beside = self.device.type == "cuda"
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" and not beside else value.to(parameter.device, copy=True)
                    for key, value in moved.items()
                }
        self.steps_done = plain["steps_done"]
        self.skipped_in_a_row = plain["skipped_in_a_row"]
        if plain["scaler"]:
            self.scaler.load_state_dict(plain["scaler"])
