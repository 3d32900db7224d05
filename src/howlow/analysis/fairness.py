"""What a comparison of ranks leaves open: settings with which another rank might have been the best.

An update is s B A, and AdamW moves A and B by about the learning rate whatever the rank is. With s = alpha / r and
alpha = 2r the update therefore grows with the rank, and one learning rate cannot suit all ranks. A low score at a high
rank may then come from its scaling or its learning rate. These warnings follow from all trials together, so they are
not in the records; `howlow.analysis.one_table` adds them where records are read.
"""

from collections.abc import Sequence

from howlow.records import Record, RecordWarning, Scores, WarningKind


def fairness_warnings(records: Sequence[Record]) -> dict[str, list[RecordWarning]]:
    """What was not tried, for each adapter whose quality is compared with that of another rank, by trial."""
    adapters = [record for record in records if record.kind == "lora" and record.scores != Scores()]
    if len({record.rank for record in adapters}) < 2:
        return {}
    found = [warning for warning in (_growing_alpha(adapters), _untried(adapters)) if warning is not None]
    return {record.trial: found for record in adapters}


def _growing_alpha(adapters: Sequence[Record]) -> RecordWarning | None:
    """A warning where alpha is a multiple of the rank, and all ranks have one learning rate."""
    growing = [record for record in adapters if isinstance(record.settings.lora.alpha, str)]
    rates = {record.settings.training.learning_rate for record in growing}
    if len({record.rank for record in growing}) < 2 or len(rates) > 1:
        return None
    alphas = " and ".join(dict.fromkeys(str(record.settings.lora.alpha) for record in growing))
    detail = f"lora.alpha = {alphas} grows with the rank, and all ranks have one learning rate ({min(rates):g})"
    return RecordWarning(kind=WarningKind.ALPHA_GROWS_WITH_RANK, detail=detail)


def _untried(adapters: Sequence[Record]) -> RecordWarning | None:
    """A warning where all trials share one scaling or one learning rate."""
    scalings = {(record.settings.lora.alpha, record.settings.lora.scaling) for record in adapters}
    rates = {record.settings.training.learning_rate for record in adapters}
    shared = []
    if len(scalings) == 1:
        ((alpha, scaling),) = scalings
        shared.append(f"one scaling (lora.alpha = {alpha}, lora.scaling = {scaling})")
    if len(rates) == 1:
        shared.append(f"one learning rate ({min(rates):g})")
    if not shared:
        return None
    detail = f"all ranks were trained with {' and '.join(shared)}; whether others suit some ranks better was not tried"
    return RecordWarning(kind=WarningKind.OTHER_SETTINGS_UNTRIED, detail=detail)
