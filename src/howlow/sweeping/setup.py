"""What is prepared before the first trial: the data, the layouts, and a check that the disk has room.

Nothing here depends on a single trial, and the results are kept in the run directory for the next start.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from howlow.errors import UserError, reason
from howlow.jobs import (
    AdapterSize,
    ForetellJob,
    Job,
    JobRunner,
    LayoutJob,
    PreparationReport,
    PrepareJob,
    Sizes,
    value_of,
)
from howlow.outcomes import DiskFullError, StoppedError, is_disk_full
from howlow.records import HeapMode, LayoutChoice, Provenance, RecordWarning, has_record, write_atomically
from howlow.records.run_directory import Conditions, refuse_changed_conditions
from howlow.settings import TrialPlan, adapts, layout_key, preparation_key

T = TypeVar("T")
_SMALLEST_FREE_BYTES = 4 << 20


@dataclass(frozen=True)
class Preparation:
    """What was prepared for the trials that share task, tokenizer and sequence length."""

    folder: Path
    report: PreparationReport
    adapters: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """rank and target modules of each adapter that is trained from zero, in the report's order"""

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of adapters and data; None where no adapter is trained from zero."""
        tokens, parameters = self.report.data.train_completion_tokens, self.report.adapter_parameters
        if tokens is None or not self.adapters:
            return None
        pairs = zip(self.adapters, parameters, strict=True)
        sizes = [AdapterSize(rank=rank, target_modules=names, parameters=count) for (rank, names), count in pairs]
        return Sizes(completion_tokens=tokens, adapters=tuple(sizes))


def prepare_all(
    runner: JobRunner, plans: Sequence[TrialPlan], folder: Path, *, cores_shared_by: int = 1
) -> dict[str, Preparation]:
    """Prepare once for each combination of model, task and lengths among the trials."""
    prepared: dict[str, Preparation] = {}
    for plan in plans:
        key = preparation_key(plan.settings)
        if key in prepared:
            continue
        alike = [other for other in plans if preparation_key(other.settings) == key]
        adapters = {(one.settings.lora.rank, one.settings.lora.target_modules) for one in alike if adapts(one.kind)}
        job = PrepareJob(
            settings=plan.settings,
            adapters=tuple(sorted(adapters)),
            heads=tuple(sorted({one.settings.training.head for one in alike})),
            variants=tuple(sorted(_variants(alike))),
            quantizations=tuple(sorted({one.settings.quantization for one in alike} - {"none"})),
            folder=folder / f"prepared-{key}",
            cores_shared_by=cores_shared_by,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder.parent, error) from None
        trained = job.adapters if plan.settings.lora.start is None else ()
        prepared[key] = Preparation(job.folder, _value(runner, job, folder), trained)
    return prepared


def _variants(plans: Sequence[TrialPlan]) -> set[tuple[str, int, tuple[str, ...]]]:
    """Variant, rank and target modules of the adapters that are not plain LoRA."""
    adapters = [plan.settings.lora for plan in plans if adapts(plan.kind)]
    return {(one.variant, one.rank, one.target_modules) for one in adapters if one.variant != "lora"}


def choose_layouts(
    runner: JobRunner,
    plans: Sequence[TrialPlan],
    pending: Sequence[TrialPlan],
    prepared: Mapping[str, Preparation],
    folder: Path,
    left: Sequence[Provenance] = (),
    *,
    cores_shared_by: int = 1,
) -> dict[str, LayoutChoice]:
    """The layout of every trial that is to run, chosen once for those that share what it depends on, and cached.

    left: what the folder's trials say about themselves. The libraries of their products are those of all trials.
    """
    chosen: dict[str, LayoutChoice] = {}
    gemms = {one.product: one for trial in reversed(left) for one in trial.resolved.gemms or ()}
    keys = dict.fromkeys(layout_key(plan.settings) for plan in pending)
    for key in sorted(keys, key=lambda key: not (folder / f"layout-{key}.json").exists()):
        plan = max((plan for plan in plans if layout_key(plan.settings) == key), key=_training_batch)
        preparation = prepared[preparation_key(plan.settings)]
        report = preparation.report
        basis = {
            "data": report.data.model_dump(mode="json", exclude={"sources"}),
            "versions": report.environment.versions,
            "on": report.environment.device,
        }
        path = folder / f"layout-{key}.json"
        cached = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if cached.get("basis") != basis:
            job = LayoutJob(
                settings=plan.settings,
                data_folder=preparation.folder,
                gemms=tuple(gemms.values()),
                cores_shared_by=cores_shared_by,
            )
            cached = {"basis": basis, "layout": _value(runner, job, folder).model_dump()}
            write_atomically(path, json.dumps(cached))
        chosen[key] = LayoutChoice(**cached["layout"])
        gemms = {one.product: one for one in chosen[key].gemms} | gemms
    return chosen


def foretell(
    runner: JobRunner, pending: Sequence[TrialPlan], layouts: Mapping[str, LayoutChoice], folder: Path
) -> tuple[RecordWarning, ...]:
    """What these trials will warn about before their first steps, each once."""
    # What else differs between trials, such as the seed, changes no such warning.
    alike = {}
    for one in pending:
        lora = one.settings.lora
        alike[one.kind, one.rank, lora.target_modules, lora.variant, layout_key(one.settings)] = one
    trials = tuple((one.kind, one.settings, layouts[layout_key(one.settings)]) for one in alike.values())
    return _value(runner, ForetellJob(trials=trials), folder) if trials else ()


def _training_batch(plan: TrialPlan) -> float:
    asked = plan.settings.training.batch_size
    return math.inf if asked == "max" else float(asked)


def _value(runner: JobRunner, job: Job[T], folder: Path) -> T:
    """What a job of the preparation returns; a full disk is the user's error as long as no trial has run."""
    log = folder / "preparation.log"
    try:
        return value_of(runner.run(job, log), job, log)
    except DiskFullError as error:
        raise UserError(f"the disk is full: {error}; make room or name a folder on another disk") from None
    except StoppedError:
        raise KeyboardInterrupt from None


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
        conditions = Conditions(preparation.report.data, preparation.report.environment, heap)
        concerned = [one for one in left if keys.get(one.trial) == key]
        half_done = [one.trial for one in concerned if folder is not None and not has_record(folder, one.trial)]
        refuse_changed_conditions(concerned, conditions, accept_different, f"--out {folder}", half_done)


def check_space(folder: Path, prepared: Iterable[Preparation], plans: Sequence[TrialPlan]) -> None:
    """Refuse to start where the largest trial cannot write its checkpoint and adapter.

    A checkpoint holds the weights and AdamW's two moments in fp32; a new one is written before the old one goes.
    """
    full = any(plan.kind == "full" for plan in plans)
    parameters = max(max([0, *preparation.report.adapter_parameters], default=0) for preparation in prepared)
    if full:
        parameters = max(parameters, *(preparation.report.total_parameters for preparation in prepared))
    needed = _SMALLEST_FREE_BYTES + parameters * 4 * (1 + 2 * 3)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--out {folder}: {free / 1e6:.0f} MB are free on that disk, the largest trial needs about "
            f"{needed / 1e6:.0f} MB for its checkpoint; make room or give another folder"
        )


def unwritable(folder: Path, error: OSError) -> UserError:
    """The user's error where the run directory cannot be written."""
    if is_disk_full(error):
        return UserError(f"--out {folder}: the disk is full ({reason(error)}); make room or give a folder elsewhere")
    return UserError(f"--out {folder}: {reason(error)}; give a folder that you may write to")
