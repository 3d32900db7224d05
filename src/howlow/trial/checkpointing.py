"""How an interrupted trial is resumed: the checkpoint's contents, and the files cut back to it.

A checkpoint is made either within the training (`position` "train": weights, AdamW, generators, totals of the meters)
or after it ("inference": the trained weights). After the training the weights no longer change, so the progress of
inference is a small file in the same folder, `inference.json`: the phases that ended, and of the running one its
batches and the meters' totals. Lines written after the last of these are cut away. Every checkpoint holds its trial's
provenance (`identity`: settings, data, machine, heap), so that no other trial resumes from it
(`howlow.records.run_directory`).
"""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from howlow.engine import checkpoint
from howlow.engine.training import Trainer
from howlow.meters.phase import PhaseMeter
from howlow.meters.session import Session
from howlow.records import (
    PhaseRecord,
    Provenance,
    RecordWarning,
    WarningKind,
    clear_temporaries,
    cut_lines,
    read_lines,
    write_atomically,
)
from howlow.tasks import task_named
from howlow.trial.state import TrialState

_INFERENCE = "inference.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read."""

    position: Literal["train", "inference"]
    time_s: float
    document: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def running(self) -> dict[str, Any]:
        """An interrupted inference phase: its name `phase`, the `batches` that count, the meters' `totals`."""
        return self.document.get("running") or {}

    @property
    def trained(self) -> bool:
        """Whether only inference is left."""
        return self.position == "inference"

    @property
    def phases(self) -> list[PhaseRecord]:
        """The phases that had ended."""
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
    totals = meter.pause().model_dump()
    tensors, plain = trainer.state()
    generators, states = checkpoint.generator_states(session.device)
    document = {"trainer": plain, "generators": states, "totals": totals}
    _save(state, session, "train", tensors | generators, document)


def save_trained(state: TrialState, session: Session, parameters: dict[str, nn.Parameter]) -> None:
    """The checkpoint after the training: only inference is left."""
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    _save(state, session, "inference", tensors or {"nothing": torch.zeros(1)}, {})


def save_inference(state: TrialState, session: Session, running: dict[str, Any] | None = None) -> None:
    """The progress of inference: the phases that ended, and the `running` one with its batches and totals."""
    state.refuse_if_lost()
    text = json.dumps(_so_far(state, session) | {"running": running})
    write_atomically(state.folder / "checkpoint" / _INFERENCE, text)


def _so_far(state: TrialState, session: Session) -> dict[str, Any]:
    found = state.found
    return {
        "time_s": session.trial_time(),
        "phases": [phase.model_dump() for phase in found.phases],
        "resumed": found.resumed,
        "started_at": found.started_at,
        "preparation_s": found.preparation_s,
        "adapter_bytes": found.model.adapter_bytes if found.model else None,
        "warnings": [warning.model_dump(mode="json") for warning in found.warnings],
        "observed": [[kind.value, detail] for kind, detail in session.observed()],
    }


def _provenance(state: TrialState) -> Provenance:
    found = state.found
    assert found.data is not None, "the data is read before the first checkpoint"
    assert found.environment is not None, "the environment is known before the first checkpoint"
    return Provenance(
        trial=state.name,
        kind=state.kind,
        axes=state.axes,
        settings=state.settings,
        resolved=found.resolved,
        environment=found.environment,
        model=found.model,
        data=found.data,
        energy=found.energy,
    )


def _save(
    state: TrialState, session: Session, position: str, tensors: dict[str, Tensor], document: dict[str, Any]
) -> None:
    state.refuse_if_lost()
    kept = {"position": position, "identity": _provenance(state).model_dump(mode="json")} | _so_far(state, session)
    checkpoint.save(state.folder / "checkpoint", tensors, kept | document)


def resume(state: TrialState) -> Saved | None:
    """The last checkpoint, with the trial's files cut back to it; without one the trial starts afresh."""
    clear_temporaries(state.folder)
    loaded = checkpoint.read(state.folder / "checkpoint")
    if loaded is not None and not _has_same_batches(state, loaded[1]["identity"]):
        checkpoint.remove(state.folder / "checkpoint")
        loaded = None
    timeline = state.folder / "timeline.jsonl"
    if loaded is None:
        for path in (state.steps_path, state.predictions_path, state.folder / "attached.jsonl", timeline):
            path.unlink(missing_ok=True)
        shutil.rmtree(state.folder / "adapter", ignore_errors=True)
        return None
    tensors, document = loaded
    if document["position"] == "train":
        done = document["trainer"]["steps_done"]
        cut_lines(state.steps_path, lambda line: bool(line["phase"] == "train" and line["step"] < done))
        for path in (state.predictions_path, state.folder / "attached.jsonl"):
            path.unlink(missing_ok=True)
    else:
        document |= _inference(state.folder / "checkpoint" / _INFERENCE)
        _cut_inference(state, document)
    time_s: float = document["time_s"]
    cut_lines(timeline, lambda line: bool(line["time_s"] <= time_s))
    state.found.resumed = document["resumed"] + 1
    state.found.started_at = document["started_at"]
    state.found.preparation_s = document["preparation_s"]
    for warning in document["warnings"]:
        if warning["kind"] != WarningKind.RESUMED:
            state.keep(RecordWarning(**warning))
    for kind, detail in document.get("observed", ()):
        state.warn(WarningKind(kind), f"{detail} (before an interruption)")
    state.warn(WarningKind.RESUMED, f"interrupted and resumed, {state.found.resumed} time(s)")
    return Saved(document["position"], time_s, document, tensors)


def _has_same_batches(state: TrialState, identity: dict[str, Any]) -> bool:
    """Whether a checkpoint was made with the batch sizes and the heap of this start.

    A search for the largest batch that is made again may find another one. Another heap would be refused before, unless
    the user accepted it.
    """
    kept, heap = (
        Provenance.model_validate_json(json.dumps(identity)).resolved,
        "bounded" if state.is_bounded else "kept",
    )
    train = None if state.kind == "base" else state.training_batch_size
    return (kept.train_batch_size, kept.inference_batch_size, kept.heap) == (train, state.inference_batch_size, heap)


def _inference(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _cut_inference(state: TrialState, document: dict[str, Any]) -> None:
    """Keep the training, the inference phases that ended, and those batches of the running one that count."""
    ended = {"train", *(phase["phase"] for phase in document["phases"])}
    running = document.get("running") or {"phase": None, "batches": 0}
    cut_lines(
        state.steps_path,
        lambda line: (
            line["phase"] in ended or (line["phase"] == running["phase"] and line["step"] < running["batches"])
        ),
    )
    # A task that generates writes its predictions in that phase, any other while it evaluates.
    writes = "generate" if task_named(state.settings.task.name).generates else "evaluate"
    kept = sum(line["samples"] for line in read_lines(state.steps_path) if line["phase"] == writes)
    counter = itertools.count()
    cut_lines(state.predictions_path, lambda line: next(counter) < kept)
