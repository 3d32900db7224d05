"""How a trial goes on after an interruption: the checkpoint's contents, and the files cut back to it.

A checkpoint stands either within the training (`position` "train": weights, AdamW, generators, totals of the meters)
or behind it ("inference": the trained weights). Lines written after it are cut away; of the inference phases every
whole batch is kept.
"""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from howlow.engine import checkpoint
from howlow.engine.training import Trainer
from howlow.meters.session import PhaseMeter, Session
from howlow.records import PhaseName, PhaseRecord, WarningKind, clear_temporaries, cut_lines, read_lines
from howlow.trial.state import TrialState


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read."""

    position: Literal["train", "inference"]
    time_s: float
    document: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def trained(self) -> bool:
        """Whether only inference is left."""
        return self.position == "inference"

    @property
    def phases(self) -> list[PhaseRecord]:
        """The phases that were over."""
        return [PhaseRecord(**phase) for phase in self.document["phases"]]

    def restore_training(self, trainer: Trainer) -> None:
        """Set weights, optimizer, scaler and generators back."""
        trainer.restore(self.tensors, self.document["trainer"])
        checkpoint.restore_generators(self.tensors, self.document["generators"])

    def restore_weights(self, parameters: dict[str, nn.Parameter]) -> None:
        """Put the trained weights back."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.tensors[f"parameter.{name}"])


def save_training(state: TrialState, session: Session, meter: PhaseMeter, trainer: Trainer) -> None:
    """A checkpoint within the training."""
    totals = meter.pause()
    tensors, plain = trainer.state()
    generators, states = checkpoint.generator_states(session.device)
    document = {"trainer": plain, "generators": states, "totals": totals}
    _save(state, session, "train", tensors | generators, document)


def save_trained(state: TrialState, session: Session, parameters: dict[str, nn.Parameter]) -> None:
    """The checkpoint that says: trained, only inference is left."""
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    _save(state, session, "inference", tensors or {"nothing": torch.zeros(1)}, {})


def _save(
    state: TrialState, session: Session, position: str, tensors: dict[str, Tensor], document: dict[str, Any]
) -> None:
    found = state.found
    kept = {
        "position": position,
        "time_s": session.trial_time(),
        "phases": [phase.model_dump() for phase in found.phases],
        "resumed": found.resumed,
        "started_at": found.started_at,
        "preparation_s": found.preparation_s,
        "adapter_bytes": found.model.adapter_bytes if found.model else None,
        "warnings": [warning.model_dump(mode="json") for warning in found.warnings],
    }
    checkpoint.save(state.folder / "checkpoint", tensors, kept | document)


def resume(state: TrialState) -> Saved | None:
    """The last checkpoint, with the files beside it cut back to it; without one the trial starts afresh."""
    clear_temporaries(state.folder)
    loaded = checkpoint.load(state.folder / "checkpoint")
    timeline = state.folder / "timeline.jsonl"
    if loaded is None:
        for path in (state.steps_path, state.predictions_path, timeline):
            path.unlink(missing_ok=True)
        shutil.rmtree(state.folder / "adapter", ignore_errors=True)
        return None
    tensors, document = loaded
    time_s: float = document["time_s"]
    if document["position"] == "train":
        done = document["trainer"]["steps_done"]
        cut_lines(state.steps_path, lambda line: bool(line["phase"] == "train" and line["step"] < done))
        state.predictions_path.unlink(missing_ok=True)
    else:
        time_s = _cut_inference(state.steps_path, state.predictions_path, time_s)
    cut_lines(timeline, lambda line: bool(line["time_s"] <= time_s))
    state.found.resumed = document["resumed"] + 1
    state.found.started_at = document["started_at"]
    state.found.preparation_s = document["preparation_s"]
    for warning in document["warnings"]:
        if warning["kind"] != WarningKind.RESUMED:
            state.warn(WarningKind(warning["kind"]), warning["detail"])
    state.warn(WarningKind.RESUMED, f"interrupted and resumed, {state.found.resumed} time(s)")
    return Saved(document["position"], time_s, document, tensors)


def _cut_inference(steps: Path, predictions: Path, time_s: float) -> float:
    """Keep whole batches only, in steps and predictions; returns the moment of the last thing kept."""
    cut_lines(steps, lambda line: True)
    samples: dict[PhaseName, int] = {"evaluate": 0, "generate": 0}
    for line in read_lines(steps):
        time_s = max(time_s, line["start_s"] + line["duration_s"])
        if line["phase"] in samples:
            samples[line["phase"]] += line["samples"]
    # A task that generates writes its predictions in that phase, any other while it evaluates.
    generates = any("generated" in line for line in read_lines(predictions))
    kept, counter = samples["generate" if generates else "evaluate"], itertools.count()
    cut_lines(predictions, lambda line: next(counter) < kept)
    return time_s
