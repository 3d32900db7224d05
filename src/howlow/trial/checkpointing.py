"""How a trial goes on in another process: the checkpoint's contents, and the files cut back to it.

A checkpoint is made either within the training (`position` "train": weights, AdamW, generators, totals of the meters)
or after it ("inference": the trained weights). After the training the weights no longer change, so the progress of
inference is a small file in the same folder, `inference.json`: the phases that ended, and of the running one its
batches and the meters' totals. Lines written after the last of these are cut away.

The checkpoint after the training is also how a trial continues as planned: the process that fine-tuned ends, and a
fresh one runs inference (`TrialState.continues`), so that no figure of inference depends on what training left in a
process. That is no interruption: nothing is cut, the trial's time goes on, and the record counts no resumption.

Every checkpoint holds its trial's provenance (`identity`: settings, data, machine, heap), so that no other trial
resumes from it (`howlow.records.run_directory`).
"""

import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from howlow.claims import machine_s
from howlow.engine import checkpoint
from howlow.engine.training import Trainer
from howlow.meters.phase import PhaseMeter
from howlow.meters.session import Session
from howlow.records import (
    MeterRecord,
    Neighbour,
    PhaseRecord,
    Provenance,
    RecordWarning,
    ShrunkRecord,
    WarningKind,
    clear_temporaries,
    cut_lines,
    read_lines,
    write_atomically,
)
from howlow.tasks import task_named
from howlow.trial.company import neighbours_so_far
from howlow.trial.state import ProcessMeters, TrialState

_INFERENCE = "inference.json"
_DECIDED_IN_TRAINING = ("joined_adapters", "compiled", "graphed", "row_lengths", "row_padding")
"""Of `Resolved`; the process that runs inference decides none of it."""
_DECIDED_IN_GENERATION = ("generation_compiled", "generation_graphed")


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read; `time_s` is the trial's time at which this process goes on."""

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

    def restore_training(self, trainer: Trainer) -> None:
        """Set weights, optimizer, scaler and generators back."""
        trainer.restore(self.tensors, self.document["trainer"])
        checkpoint.restore_generators(self.tensors, self.document["generators"])

    def restore_weights(self, parameters: dict[str, nn.Parameter]) -> None:
        """Put the trained weights back, and let go of the checkpoint's: they would count in the peaks of inference."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.tensors[f"parameter.{name}"])
        self.tensors.clear()


def save_training(state: TrialState, session: Session, meter: PhaseMeter, trainer: Trainer) -> None:
    """A checkpoint within the training."""
    totals = meter.pause().model_dump()
    tensors, plain = trainer.state()
    generators, states = checkpoint.generator_states(session.device)
    document = {"trainer": plain, "generators": states, "totals": totals}
    _save(state, session, "train", tensors | generators, document)


def save_trained(state: TrialState, session: Session, parameters: dict[str, nn.Parameter]) -> None:
    """The checkpoint after the training, from which a fresh process runs inference."""
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    meters = state.found.fine_tuning
    assert meters is not None, "the meters of this process have told what they found"
    kept = asdict(meters) | {"record": meters.record.model_dump(mode="json")}
    document = {"trained_at_s": machine_s(), "meters": kept, "observed": []}  # what they found is among the warnings
    _save(state, session, "inference", tensors, document)


def save_untrained(state: TrialState, session: Session) -> None:
    """The checkpoint of a trial without training, in whose folder the progress of inference is kept."""
    _save(state, session, "inference", {"nothing": torch.zeros(1)}, {})


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
        "second_load": found.second_load.model_dump() if found.second_load else None,
        "handover_s": found.handover_s,
        "generation": {name: getattr(found.resolved, name) for name in _DECIDED_IN_GENERATION},
        "shrunk": found.shrunk.model_dump() if found.shrunk else None,
        "adapter_bytes": found.model.adapter_bytes if found.model else None,
        "neighbours": _plain_neighbours(state),
        "warnings": [warning.model_dump(mode="json") for warning in found.warnings],
        "observed": [[kind.value, detail] for kind, detail in session.observed()],
    }


def _plain_neighbours(state: TrialState) -> list[dict[str, Any]] | None:
    found = neighbours_so_far(state)
    return None if found is None else [one.model_dump(mode="json") for one in found]


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
    if loaded is not None and not _has_same_batches(state, loaded[1]):
        checkpoint.remove(state.folder / "checkpoint")
        loaded = None
    if loaded is None:
        _clear(state)
        return None
    tensors, document = loaded
    if document["position"] == "inference":
        document |= _inference(state.folder / "checkpoint" / _INFERENCE)
    _restore_draft(state, document)
    time_s = _continued(state, document) if state.continues else _interrupted(state, document)
    return Saved(document["position"], time_s, document, tensors)


def _clear(state: TrialState) -> None:
    """Remove what an attempt without a checkpoint left."""
    for path in (state.steps_path, state.predictions_path, _attached(state), _timeline(state)):
        path.unlink(missing_ok=True)
    shutil.rmtree(state.folder / "adapter", ignore_errors=True)


def _attached(state: TrialState) -> Path:
    return state.folder / "attached.jsonl"


def _timeline(state: TrialState) -> Path:
    return state.folder / "timeline.jsonl"


def _restore_draft(state: TrialState, document: dict[str, Any]) -> None:
    """What the record will hold, as far as it was known."""
    found, meters = state.found, document.get("meters")
    found.resumed = document["resumed"]
    found.started_at = document["started_at"]
    found.preparation_s = document["preparation_s"]
    found.second_load = PhaseRecord(**document["second_load"]) if document["second_load"] else None
    found.handover_s = document["handover_s"]
    found.shrunk = ShrunkRecord(**document["shrunk"]) if document.get("shrunk") else None
    found.phases = [PhaseRecord(**phase) for phase in document["phases"]]
    found.warnings = [RecordWarning(**warning) for warning in document["warnings"]]
    kept_neighbours = document.get("neighbours")
    found.neighbours = None if kept_neighbours is None else tuple(Neighbour(**one) for one in kept_neighbours)
    if document["position"] == "inference":
        kept = _identity(document).resolved
        state.resolve(**{name: getattr(kept, name) for name in _DECIDED_IN_TRAINING})
        state.resolve(**document["generation"])
    if meters:
        found.fine_tuning = ProcessMeters(**meters | {"record": MeterRecord(**meters["record"])})


def _continued(state: TrialState, document: dict[str, Any]) -> float:
    """Go on where the process that fine-tuned has just ended; the trial's time has gone on meanwhile."""
    state.found.trained_at_s = document["trained_at_s"]
    return float(document["time_s"]) + machine_s() - float(document["trained_at_s"]) - state.waited_s


def _interrupted(state: TrialState, document: dict[str, Any]) -> float:
    """Cut the files back and count the interruption; its own time is left out of the trial's."""
    time_s: float = document["time_s"]
    if document["position"] == "train":
        done = document["trainer"]["steps_done"]
        cut_lines(state.steps_path, lambda line: bool(line["phase"] == "train" and line["step"] < done))
        for path in (state.predictions_path, _attached(state)):
            path.unlink(missing_ok=True)
    else:
        _cut_inference(state, document)
    cut_lines(_timeline(state), lambda line: bool(line["time_s"] <= time_s))
    for kind, detail in document.get("observed", ()):
        state.warn(WarningKind(kind), f"{detail} (before an interruption)")
    state.found.resumed += 1
    state.found.warnings = [one for one in state.found.warnings if one.kind != WarningKind.RESUMED]
    state.warn(WarningKind.RESUMED, f"interrupted and resumed, {state.found.resumed} time(s)")
    return time_s


def _identity(document: dict[str, Any]) -> Provenance:
    """The provenance of a checkpoint."""
    return Provenance.model_validate_json(json.dumps(document["identity"]))


def _has_same_batches(state: TrialState, document: dict[str, Any]) -> bool:
    """Whether a checkpoint was made with the batch sizes and the heap of this start.

    A search for the largest batch that is made again may find another one. Another heap would be refused before, unless
    the user accepted it.
    """
    kept, heap = _identity(document).resolved, "bounded" if state.is_bounded else "kept"
    train = state.training_batch_size if state.trains else None
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
