"""A base that is sharded over several devices (`run.devices_per_trial`): what cannot be combined with it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from howlow.settings.schema import Settings

_REFUSED: tuple[tuple[str, str, str], ...] = (
    ("training.batch_size", "max", "the search for the largest batch runs on one device; give a number"),
    ("inference.batch_size", "max", "the search for the largest batch runs on one device; give a number"),
    ("inference.adapter", "merged", "a sharded matrix takes no adapter; set attached"),
    ("run.device", "mps", "such a machine has one device; leave devices_per_trial out"),
)


def workers_here(settings: "Settings") -> int:
    """The trials that a machine runs at one time; on a cluster `run.workers` counts those of all machines."""
    return (settings.run.workers or 1) if settings.run.executor == "local" else 1


def processes_of(settings: "Settings") -> int:
    """The processes of trials that share the cores of a machine."""
    return workers_here(settings) * settings.run.devices_per_trial


def refuse_with_several_devices(settings: "Settings") -> None:
    """Refuse settings that a sharded base cannot take.

    Raises:
        ValueError: naming the setting, why, and what to do.
    """
    if settings.run.devices_per_trial == 1:
        return
    asked = f"run.devices_per_trial = {settings.run.devices_per_trial}"
    if "full" in settings.baselines:
        raise ValueError(f'{asked} with baselines = ["full"]: only a frozen base is sharded; leave full out')
    if settings.training.compile is True:
        raise ValueError(f"{asked} with training.compile = true: sharded layers run plain; set false or auto")
    if settings.quantization != "none":
        told = f'{asked} with quantization = "{settings.quantization}"'
        raise ValueError(f'{told}: its packed weights cannot be sharded; set "none", or leave devices_per_trial out')
    for key, value, advice in _REFUSED:
        if settings.get(key) == value:
            raise ValueError(f'{asked} with {key} = "{value}": {advice}')
