"""`howlow shrink`: a sweep over smaller ranks of one trained adapter.

Each trial cuts the adapter's update to its rank (`lora.start`), saves it and scores it, in the run directory of a
sweep. An adapter that a trial of howlow left is scored as that trial was: its record gives all settings. Of any other
one, its own config gives base model, rank, scaling and target modules.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from howlow.errors import UserError
from howlow.records import Record, has_record, read_record_beside
from howlow.settings import SavedAdapter, Settings, adapts, expand, read_saved_adapter
from howlow.settings.checking import flat

_OF_ADAPTER = "it follows from the adapter; leave it out"


def settings_of_adapter(place: Path | str, ranks: Sequence[int], continue_steps: int = 0) -> dict[str, Any]:
    """A table of settings for a sweep that cuts an adapter to these ranks; flags and `--set` may change the rest.

    Args:
        place: the adapter's folder, or that of the trial which left it.
        ranks: each at most the adapter's own.
        continue_steps: optimizer steps of further training of each cut adapter.

    Raises:
        UserError: the adapter cannot be cut, a rank is above its own, or its record is another adapter's.
    """
    adapter = read_saved_adapter(Path(place))
    above = [rank for rank in ranks if rank > adapter.rank]
    if above:
        listed = ", ".join(map(str, above))
        raise UserError(f"--ranks: {listed} is above the adapter's own rank, {adapter.rank}; leave it out")
    record = read_record_beside(adapter.folder)
    table = _of_record(record, adapter) if record else _of_config(adapter)
    start = {"start": str(adapter.folder.resolve()), "start_rank": adapter.rank, "continue_steps": continue_steps}
    table["lora"] = table["lora"] | start | {"rank": ranks[0]}
    table["grid"] = {"lora.rank": list(ranks), "seed": [table.get("seed", 0)]}
    return table | {"baselines": []}


def _of_record(record: Record, adapter: SavedAdapter) -> dict[str, Any]:
    lora = record.settings.lora
    scaling = "rank_stabilized" if adapter.is_rank_stabilized else "standard"
    is_alike = lora.saved_rank == adapter.rank and math.isclose(lora.saved_alpha, adapter.alpha)
    if not adapts(record.kind) or not is_alike or lora.scaling != scaling:
        raise UserError(
            f"adapter {adapter.folder}: it is not that of the trial in its folder ({record.trial}); put it into a "
            "folder of its own, and give --task, --train and --test"
        )
    table: dict[str, Any] = record.settings.model_dump(exclude_none=True)
    table["run"]["repeats"] = 1
    if record.kind == "shrunk" or lora.variant == "pissa":  # alpha counts at another rank than the adapter's
        table["lora"] |= {"alpha": adapter.alpha, "variant": "lora"}
    return table


def _of_config(adapter: SavedAdapter) -> dict[str, Any]:
    lora = {
        "alpha": adapter.alpha,
        "scaling": "rank_stabilized" if adapter.is_rank_stabilized else "standard",
        "target_modules": list(adapter.target_modules),
        "dropout": adapter.dropout,
    }
    return {"lora": lora} | ({"model": adapter.base_model} if adapter.base_model else {})


def refuse_missing(place: Path | str, tables: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an adapter of which neither a record nor a flag says how it is scored.

    Raises:
        UserError: names the flags that are missing.
    """
    given = {key for table in tables for key, _ in flat(table)}
    flags = {"model": "--model", "task.name": "--task", "task.train": "--train", "task.test": "--test"}
    missing = [flag for key, flag in flags.items() if key not in given]
    if missing:
        raise UserError(
            f"adapter {place}: there is no record of its trial in the folder above, which would say how it is scored; "
            f"give {' and '.join(missing)}"
        )


def refuse_of_adapter(overrides: Sequence[Mapping[str, Any]]) -> None:
    """Refuse settings that the adapter decides, given as `--set`.

    Raises:
        UserError: names the first.
    """
    for override in overrides:
        grid = override.get("grid", {})
        axes = [axis for axis in grid if axis.startswith("lora.")] if isinstance(grid, Mapping) else []
        lora = override.get("lora", {})
        keys = [f"lora.{name}" for name in lora] if isinstance(lora, Mapping) else []
        for key in [*axes, *keys]:
            if key != "lora.continue_steps":
                raise UserError(f"--set {key}: {_OF_ADAPTER}")


def refuse_existing(out: Path | str, settings: Settings) -> None:
    """Refuse a folder that is there already, unless an interrupted shrink of the same kind is to be resumed in it.

    Raises:
        UserError: the folder holds other things, or everything that was asked for.
    """
    folder = Path(out)
    if not folder.exists():
        return
    if not (folder / "sweep.toml").is_file() and not (folder / ".howlow").is_dir():
        what = "it" if folder.is_dir() else "a file of that name"
        raise UserError(f"--out {folder}: {what} exists already and holds no shrink to resume; give a new folder")
    if all(has_record(folder, plan.name) for plan in expand(settings)):
        raise UserError(
            f"--out {folder}: it exists already and holds all of these ranks; howlow report {folder} shows them, or "
            "give a new folder"
        )


def run_beside(settings: Settings) -> Path | None:
    """The run directory whose sweep trained the adapter; None where it came from elsewhere."""
    assert settings.lora.start is not None, "these settings were made from an adapter"
    run = Path(settings.lora.start) / ".." / ".." / ".."
    return run.resolve() if (run / "sweep.toml").is_file() else None
