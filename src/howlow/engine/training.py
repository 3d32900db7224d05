"""Fine-tuning: one optimizer step at a time.

A step's loss is the summed negative log-likelihood of all its target tokens divided by their number, over all its
micro-batches together: accumulation changes the memory, not the gradient. AdamW, clipping by the global L2 norm, and a
schedule that is a plain function of the step, so that a resumed training needs no schedule state.

Precision: `fp32`; `bf16`: autocast to bf16 over a bf16 base, the adapter's own weights in fp32; `fp16-autocast`: fp32
weights, autocast to fp16, the loss scaled so that small gradients survive (the paper's mode, section III.D). A step
whose scaled gradients overflow is skipped, as torch's scaler does.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from howlow.engine.attention import Kernel
from howlow.engine.layouts import Batch
from howlow.engine.loss import running, target_losses
from howlow.engine.model import Precision

MAX_SKIPPED_STEPS = 20


class DivergedError(Exception):
    """The loss is not finite, or fp16 gradients overflowed too often in a row."""


@dataclass(frozen=True)
class Optimization:
    """How the optimizer moves."""

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
class StepOutcome:
    """What one optimizer step did."""

    loss: float
    gradient_norm: float | None
    skipped: bool


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which forward passes run."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


class Trainer:
    """Model, optimizer and scaler of one training; `step` is the whole loop's body."""

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        optimization: Optimization,
        *,
        device: torch.device,
        precision: Precision,
        head: Literal["targets", "all"],
        kernel: Kernel = "sdpa",
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.optimization = optimization
        self.device = device
        self.precision = precision
        self.head: Literal["targets", "all"] = head
        self.kernel: Kernel = kernel
        self.optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=optimization.learning_rate,
            betas=optimization.betas,
            weight_decay=optimization.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16-autocast")
        self.steps_done = 0
        self.skipped_in_a_row = 0

    def step(self, micro_batches: Sequence[Batch]) -> StepOutcome:
        """Forward and backward over the micro-batches, one at a time on the device, then one move of the optimizer.

        Raises:
            DivergedError: the loss is not finite, or too many steps in a row were skipped.
        """
        target_tokens = sum(batch.target_tokens for batch in micro_batches)
        scale = self.scaler.scale(torch.ones((), device=self.device)) / target_tokens
        total = 0.0
        for batch in (batch.to(self.device) for batch in micro_batches):
            # also around backward, which recomputes with gradient checkpointing
            with running(self.model, batch, self.head, self.kernel):
                with autocast(self.device, self.precision):
                    losses, scaled = target_losses(self.model, batch, self.head, scale)
                scaled.backward()  # type: ignore[no-untyped-call]
            total += float(losses.sum()) / target_tokens
        if not math.isfinite(total):
            raise DivergedError(f"the loss of step {self.steps_done} is {total}")
        return self._move(total)

    def _move(self, loss: float) -> StepOutcome:
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimization.learning_rate_at(self.steps_done)
        self.scaler.unscale_(self.optimizer)
        limit = self.optimization.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() < scale
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.steps_done += 1
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise DivergedError(f"{MAX_SKIPPED_STEPS} steps in a row were skipped: their fp16 gradients overflow")
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise DivergedError(f"the gradient of step {self.steps_done - 1} is not finite")
        return StepOutcome(loss, norm if math.isfinite(norm) else None, skipped)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on, generators aside: tensors by name, and plain values."""
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
            if keys:
                moved = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
                # AdamW keeps its step counter on the CPU and its moments beside the parameter.
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in moved.items()
                }
        self.steps_done = plain["steps_done"]
        self.skipped_in_a_row = plain["skipped_in_a_row"]
        if plain["scaler"]:
            self.scaler.load_state_dict(plain["scaler"])
