"""What is prepared before the first trial: the data and the layouts; and whether the disk has room.

Nothing here depends on a single trial. The results are kept in the run directory for the next start.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.errors import UserError
from howlow.executors.local import LocalExecutor
from howlow.outcomes import Finished, is_disk_full
from howlow.records import DataRecord, Environment, HeapMode, Provenance, RecordWarning, write_atomically
from howlow.records.run_directory import Conditions, refuse_changed_conditions
from howlow.settings import TrialPlan, layout_key, preparation_key

_SMALLEST_FREE_BYTES = 4 << 20
_PATIENCE_S = 2.0  # a preparation that is interrupted has nothing to keep


@dataclass(frozen=True)
class Preparation:
    """What was prepared for the trials that share task, tokenizer and sequence length."""

    folder: Path
    report: dict[str, Any]

    @property
    def data(self) -> DataRecord:
        """The examples."""
        return DataRecord(**self.report["data"])

    @property
    def environment(self) -> Environment:
        """What the trials will run on."""
        return Environment(**self.report["environment"])

    @property
    def warnings(self) -> list[RecordWarning]:
        """What the data and the model gave rise to."""
        return [RecordWarning(**warning) for warning in self.report["warnings"]]


def prepare(executor: LocalExecutor, plans: Sequence[TrialPlan], folder: Path) -> dict[str, Preparation]:
    """Prepare once for each combination of model, task and lengths among the trials."""
    prepared: dict[str, Preparation] = {}
    for plan in plans:
        key = preparation_key(plan.settings)
        if key in prepared:
            continue
        alike = [other for other in plans if other.kind == "lora" and preparation_key(other.settings) == key]
        adapters = {(other.settings.lora.rank, other.settings.lora.target_modules) for other in alike}
        heads = {other.settings.training.head for other in plans if preparation_key(other.settings) == key}
        payload = {
            "settings": plan.settings.model_dump_json(),
            "adapters": sorted(adapters),
            "heads": sorted(heads),
            "folder": str(folder / f"prepared-{key}"),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "preparation.log"
            finished = executor.run("howlow.trial.entries.prepare_entry", payload, log, patience_s=_PATIENCE_S)
        except OSError as error:
            raise unwritable(folder.parent, error) from None
        prepared[key] = Preparation(folder / f"prepared-{key}", _checked(finished, folder))
    return prepared


def choose_layouts(
    executor: LocalExecutor,
    plans: Sequence[TrialPlan],
    pending: Sequence[TrialPlan],
    prepared: Mapping[str, Preparation],
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """The layout of every trial that is to run, chosen once for those that share what it depends on, and laid by."""
    chosen: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(layout_key(plan.settings) for plan in pending):
        plan = max((plan for plan in plans if layout_key(plan.settings) == key), key=_training_batch)
        preparation = prepared[preparation_key(plan.settings)]
        environment = preparation.report["environment"]
        basis = {"data": preparation.report["data"], "versions": environment["versions"], "on": environment["device"]}
        path = folder / f"layout-{key}.json"
        laid_by = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if laid_by.get("basis") != basis:
            payload = {"settings": plan.settings.model_dump_json(), "data": str(preparation.folder)}
            finished = executor.run("howlow.trial.entries.choose_entry", payload, folder / "preparation.log")
            laid_by = {"basis": basis, "layout": _checked(finished, folder)}
            write_atomically(path, json.dumps(laid_by))
        chosen[key] = laid_by["layout"]
    return chosen


def _training_batch(plan: TrialPlan) -> float:
    asked = plan.settings.training.batch_size
    return math.inf if asked == "max" else float(asked)


def _checked(finished: Finished, folder: Path) -> dict[str, Any]:
    if finished.outcome == "result":
        report: dict[str, Any] = finished.value
        return report
    if finished.outcome == "user_error":
        raise UserError(finished.value)
    if finished.outcome == "disk_full":
        raise UserError(f"--out {folder.parent}: the disk is full ({finished.value}); make room or give another folder")
    if finished.outcome == "stopped":
        raise KeyboardInterrupt
    log = folder / "preparation.log"
    written = log.read_text(errors="replace")[-4000:] if log.exists() else "(no log)"
    raise RuntimeError(f"preparing the data ended with {finished.value}:\n{written}")


def refuse_changed_data(
    folder: Path | None,
    left: Sequence[Provenance],
    prepared: Mapping[str, Preparation],
    plans: Sequence[TrialPlan],
    heap: HeapMode,
    accept_different: Sequence[str],
) -> None:
    """Refuse to continue trials with other data, on another machine or with another heap than they ran with."""
    keys = {plan.name: preparation_key(plan.settings) for plan in plans}
    for key, preparation in prepared.items():
        conditions = Conditions(preparation.data, preparation.environment, heap)
        concerned = [one for one in left if keys.get(one.trial) == key]
        refuse_changed_conditions(concerned, conditions, accept_different, f"--out {folder}")


def check_space(folder: Path, prepared: Iterable[Preparation], plans: Sequence[TrialPlan]) -> None:
    """Refuse to start where the largest trial cannot write its checkpoint and adapter.

    A checkpoint holds the weights and AdamW's two moments in fp32; a new one is written before the old one goes.
    """
    full = any(plan.kind == "full" for plan in plans)
    parameters = max(max([0, *preparation.report["adapter_parameters"]], default=0) for preparation in prepared)
    if full:
        parameters = max(parameters, *(preparation.report["total_parameters"] for preparation in prepared))
    needed = _SMALLEST_FREE_BYTES + parameters * 4 * (1 + 2 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--out {folder}: {free / 1e6:.0f} MB are free on that disk, the largest trial needs about "
            f"{needed / 1e6:.0f} MB for its checkpoint; make room or give another folder"
        )


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to tell a user whose run directory cannot be written."""
    if is_disk_full(error):
        return UserError(f"--out {folder}: the disk is full; make room or give a folder on another disk")
    return UserError(f"--out {folder}: {error.strerror}")
