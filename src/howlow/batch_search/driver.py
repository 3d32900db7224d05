"""The largest batch of a trial: the processes of its search, and what earlier searches found.

The search itself is a plain function (`howlow.batch_search.search`) that runs beside the probes in a child
(`howlow.batch_search.probe`). A child goes on as far as one process may; here it is started again with what is known
so far, until the batch is found. A probe that ends its process for want of memory is one that does not fit.

What was found lies in `DIR/.howlow/batch-*.json`, under everything that it depends on: a sweep that goes on, and a
trial that is run again, search no more. The probes of other ranks in there tell where to look first. Beside it, in
`probes-*.json`, lies every probe of a search that has not ended, so that one that was interrupted goes on with them.
"""

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from howlow.errors import UserError
from howlow.executors.local import LocalExecutor
from howlow.outcomes import is_held, kernel_kills, ran_out_of_memory
from howlow.records import BatchProbe, BatchSearch, write_atomically
from howlow.settings import TrialPlan, batch_search_keys

Setting = Literal["training.batch_size", "inference.batch_size"]
Tell = Callable[[Mapping[str, Any]], None]


class SearchFailedError(Exception):
    """The search ended otherwise than with a batch or for want of memory."""


@dataclass(frozen=True)
class Place:
    """Where and on what trials run: the folder for what is found, data, layout, device, and what else it depends on."""

    folder: Path
    data: Path
    layout: Mapping[str, Any]
    basis: Mapping[str, Any]
    device: str


@dataclass
class _Told:
    """What the children of one search have told; `earlier_limit` held for the probes that an earlier start left."""

    limit: dict[str, Any] | None = None
    earlier_limit: dict[str, Any] | None = None
    known: dict[str, Any] | None = None
    probing: dict[str, Any] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    has_probed: bool = False

    def hear(self, kind: str, value: Any) -> None:
        """Keep one event."""
        if kind == "probe":
            self.probes.append(value)
            self.probing, self.has_probed = {}, True
        else:
            setattr(self, kind, value)


def searched_settings(plan: TrialPlan) -> list[Setting]:
    """The settings of a trial that are to be searched for."""
    trains = plan.kind != "base"
    asked: dict[Setting, bool] = {
        "training.batch_size": trains and plan.settings.training.batch_size == "max",
        "inference.batch_size": plan.settings.inference.batch_size == "max",
    }
    return [setting for setting, is_asked in asked.items() if is_asked]


def largest_batch(executor: LocalExecutor, plan: TrialPlan, setting: Setting, place: Place, tell: Tell) -> BatchSearch:
    """The search of an earlier time, or a new one.

    Raises:
        UserError: the batch cannot be searched for here.
        SearchFailedError: a probe ended in another way than for want of memory.
        KeyboardInterrupt: the search was asked to stop.
    """
    key = _key(plan, setting, place)
    path, kept = place.folder / f"batch-{key}.json", place.folder / f"probes-{key}.json"
    earlier = BatchSearch(**json.loads(path.read_text(encoding="utf-8"))["search"]) if path.exists() else None
    if earlier is not None and earlier.batch is not None:
        return earlier  # after one in vain, whoever asks again wants to know whether it still is
    told, family = _told_before(kept), _family(plan, setting, place)
    others = _others(place.folder, family)
    found: dict[str, Any] | None = None
    while found is None:
        found = _one_process(executor, _payload(plan, setting, place, told, others), told, place, kept, tell)
    assert told.limit is not None, "the first process tells the limit"
    search = BatchSearch(
        setting=setting,
        batch=found["batch"],
        largest=found["largest"],
        probes=tuple(_as_record(probe) for probe in told.probes),
        **{key: value for key, value in told.limit.items() if key != "enforced_bytes"},
    )
    document = {"family": family, "search": search.model_dump(), "other": {"known": told.known, "probes": told.probes}}
    write_atomically(path, json.dumps(document))
    kept.unlink(missing_ok=True)
    return search


def _told_before(kept: Path) -> _Told:
    """What an earlier start of this search, one that was interrupted, has left."""
    if not kept.exists():
        return _Told()
    left = json.loads(kept.read_text(encoding="utf-8"))
    return _Told(earlier_limit=left["limit"], known=left["known"], probes=left["probes"])


def _keep(told: _Told, kept: Path) -> None:
    write_atomically(kept, json.dumps({"limit": told.limit, "known": told.known, "probes": told.probes}))


def _payload(
    plan: TrialPlan, setting: Setting, place: Place, told: _Told, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "setting": setting,
        "kind": plan.kind,
        "settings": plan.settings.model_dump_json(),
        "folder": str(place.folder / "probe"),
        "data": str(place.data),
        "layout": place.layout,
        "limit": told.limit,
        "earlier_limit": told.earlier_limit,
        "probes": list(told.probes),
        "others": others,
    }


def _one_process(
    executor: LocalExecutor, payload: dict[str, Any], told: _Told, place: Place, kept: Path, tell: Tell
) -> dict[str, Any] | None:
    """Probe in one child; what it found, None where it takes another."""

    def on_event(kind: str, value: Any) -> None:
        told.hear(kind, value)
        if kind == "probe":
            _keep(told, kept)
            tell(value)

    log = place.folder / "probe.log"
    log.write_text("", encoding="utf-8")
    kills = kernel_kills()
    told.probing, told.has_probed = {}, False
    finished = executor.run("howlow.batch_search.probe.probe_entry", payload, log, on_event)
    if finished.outcome == "result":
        found: dict[str, Any] | None = finished.value
        return found
    if finished.outcome == "stopped":
        raise KeyboardInterrupt
    if finished.outcome == "user_error":
        raise UserError(finished.value)
    if finished.outcome == "disk_full":
        raise OSError(errno.ENOSPC, finished.value)
    is_limited = told.limit is not None and told.limit["enforced_bytes"] is not None and is_held(place.device)
    has_begun = bool(told.probing) or told.has_probed
    if not has_begun or not ran_out_of_memory(finished, log, kernel_kills() > kills, is_limited):
        raise SearchFailedError(f"a probe for the largest batch ended: {finished.value}; see {log}")
    if told.probing:
        on_event("probe", {**told.probing, "peak_bytes": None, "fits": False})
    return None


def _as_record(probe: Mapping[str, Any]) -> BatchProbe:
    return BatchProbe(
        batch=probe["batch"],
        computed_tokens=probe["load"],
        peak_memory_bytes=probe["peak_bytes"],
        fits=probe["fits"],
    )


def nothing_fits(search: BatchSearch) -> str:
    """Says of a search in vain what a batch of one example took."""
    one = next(probe for probe in search.probes if probe.batch == 1)
    beside = ", or the fine-tuning before it does" if search.setting == "inference.batch_size" else ""
    took = f"more than that{beside}" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / 1e9:.3f} GB"
    return (
        f'{search.setting} = "max": not even one example fits: its heaviest batch has {one.computed_tokens} tokens and '
        f"takes {took}; {search.budget_bytes / 1e9:.3f} GB may be taken ({search.limit}, less run.memory_margin)"
    )


# -- what earlier searches found ------------------------------------------------------------------------------------


def _key(plan: TrialPlan, setting: Setting, place: Place) -> str:
    """What the batch depends on: the family's, and what makes one of the family."""
    own: dict[str, Any] = {"rank": plan.rank}
    if setting == "training.batch_size":
        own["seed"] = plan.seed
    return plan.settings.digest((), family=_family(plan, setting, place), **own)


def _family(plan: TrialPlan, setting: Setting, place: Place) -> str:
    """What searches have in common whose probes tell of one another: everything but rank and seed."""
    own = {"setting": setting, "kind": plan.kind, "layout": dict(place.layout), "basis": dict(place.basis)}
    return plan.settings.digest(batch_search_keys(setting), **own)


def _others(folder: Path, family: str) -> list[dict[str, Any]]:
    """The probes of the family's searches."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("batch-*.json"))]
    return [document["other"] for document in found if document["family"] == family and document["other"]["known"]]
