"""report.html: one file that needs no network. The figures are interactive where scripts run, still pictures elsewhere.

Every text goes through the template's escaping; JSON inside a script has its `<` written as an escape.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from howlow.analysis.comparison import Comparison, Group
from howlow.analysis.rows import inference_phase, layout_of
from howlow.records import Record
from howlow.reporting import formatting
from howlow.reporting.charts import Figure, vega_lite_version
from howlow.reporting.summary import FULL, axes_words, label_of, summarize
from howlow.reporting.words import sentences
from howlow.settings import to_toml

_MOST_ROWS = 200
_MOST_TRIALS = 8


def page(comparison: Comparison, figures: Sequence[tuple[Figure, str]]) -> str:
    """The page as text; `figures` come with their SVG."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("howlow", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = summarize(comparison, FULL, quality_first=True)
    return environment.get_template("page.html.jinja").render(
        title=_title(comparison),
        asked=_asked(comparison),
        sentences=sentences(comparison),
        summary=summary,
        lines=summary.lines[:_MOST_ROWS],
        left_out=max(0, len(summary.lines) - _MOST_ROWS),
        trials_of={note.number: formatting.listed(list(note.trials), _MOST_TRIALS) for note in summary.warnings},
        measured=_measured(comparison)[:_MOST_ROWS],
        energy=_energy(comparison),
        meters=_meters(comparison),
        environment=_environment(comparison),
        settings=_settings(comparison),
        columns=comparison.results.columns,
        figures=[{"figure": figure, "image": _image(svg)} for figure, svg in figures],
        specs={figure.name: figure.spec for figure, _ in figures},
        script=_script() if figures else "",
    )


def _image(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _script() -> str:
    """Vega, Vega-Lite and vega-embed in one; a closing tag inside a string of theirs would end the element early."""
    import altair as alt
    import vl_convert

    version = vega_lite_version(alt.SCHEMA_VERSION, vl_convert.get_vegalite_versions())
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _title(comparison: Comparison) -> str:
    settings = comparison.results.trials[0].record.settings
    model = settings.model.rstrip("/").rpartition("/")[2]
    return f"How low can the rank go for {model} on {settings.task.name.replace('_', ' ')}?"


def _asked(comparison: Comparison) -> dict[str, str]:
    records = [trial.record for trial in comparison.results.trials]
    settings = records[0].settings
    data = next((record.data for record in records if record.data is not None), None)
    environment = next((record.environment for record in records if record.environment is not None), None)
    model = next((record.model for record in records if record.model is not None), None)
    trained = next((record for record in records if record.kind != "base"), records[0])
    training = trained.settings.training
    seeds = sorted({record.seed for record in records})
    about = f", {model.total_parameters:,} parameters, {model.weights}" if model else ""
    facts = {
        "model": f"{settings.model}{about}",
        "task": settings.task.name,
        "training data": settings.task.train,
        "test data": settings.task.test,
    }
    if data is not None:
        facts["training data"] += f": {data.train_examples:,} examples in {data.train_groups:,} groups"
        facts["test data"] += f": {data.test_examples:,} examples in {data.test_groups:,} groups"
    facts["ranks"] = formatting.listed([str(rank) for rank in comparison.results.asked_ranks], 24) or "none"
    facts["seeds"] = formatting.listed([str(seed) for seed in seeds], 12)
    facts["device"] = f"{environment.device_name} ({environment.device})" if environment else formatting.ABSENT
    facts["training"] = (
        f"layout {layout_of(trained)}, precision {trained.resolved.precision or training.precision}, sequence length "
        f"{training.sequence_length}, learning rate {training.learning_rate:g}, "
        f"{formatting.counted(training.epochs, 'epoch')}"
    )
    return facts


# -- how it was measured --------------------------------------------------------------------------------------------


def _measured(comparison: Comparison) -> list[dict[str, str]]:
    return [
        {
            "label": label_of(group),
            "axes": axes_words(group.axes),
            "train": _steps(group, "train"),
            "inference": _inference_steps(group),
            "energy": formatting.listed(_distinct(trial.row["energy_source"] or "absent" for trial in group.trials)),
            "resumed": _span(trial.record.resumed for trial in group.trials),
            "total": _span_of_time([trial.record.total_s for trial in group.trials]),
        }
        for group in comparison.groups
    ]


def _inference_steps(group: Group) -> str:
    phase = next((found for trial in group.trials if (found := inference_phase(trial.record))), None)
    return f"{phase}: {_steps(group, phase)}" if phase else formatting.ABSENT


def _steps(group: Group, phase: str) -> str:
    measured = _span(trial.measured_steps[phase] for trial in group.trials)
    burn_in = _span(trial.burn_in_steps[phase] for trial in group.trials)
    return formatting.ABSENT if (measured, burn_in) == ("0", "0") else f"{measured} measured, {burn_in} burn-in"


def _span(counts: Iterable[int]) -> str:
    there = sorted(set(counts))
    return f"{there[0]:,}" if len(there) == 1 else f"{there[0]:,} to {there[-1]:,}"


def _span_of_time(times_s: Sequence[float | None]) -> str:
    there = sorted(time for time in times_s if time is not None)
    if not there:
        return formatting.ABSENT
    first, last = formatting.duration(there[0]), formatting.duration(there[-1])
    return first if first == last else f"{first} to {last}"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _energy(comparison: Comparison) -> list[str]:
    sources = [trial.record.energy for trial in comparison.results.trials if trial.record.energy is not None]
    told = _distinct(f"{source.name or 'absent'}: {source.detail}" for source in sources)
    return told + _distinct(line for trial in comparison.results.trials for line in _source(trial.record))


def _source(record: Record) -> list[str]:
    """The source's pace, the CPU's own, and the power at rest that is taken off."""
    energy, idle = record.energy, record.meters.idle if record.meters else None
    lines = []
    if energy is not None and energy.update_period_s is not None:
        lines.append(f"updated every {formatting.duration(round(energy.update_period_s, 3))}")
    if energy is not None and energy.cpu == "rapl":
        lines.append("the CPU beside it: rapl, in columns of its own and never added")
    if idle is not None:
        cpu = "" if idle.cpu_power_w is None else f", the CPU {formatting.quantity(idle.cpu_power_w, 'watts')}"
        lines.append(f"at rest {formatting.quantity(idle.power_w, 'watts')}{cpu}, measured {idle.measured_at}")
    return lines


def _meters(comparison: Comparison) -> list[str]:
    """How the meters did: the slowest and the costliest of the trials."""
    found = [trial.record.meters for trial in comparison.results.trials if trial.record.meters is not None]
    rates = [meters.rate_hz for meters in found if meters.rate_hz is not None]
    gaps = [meters.largest_gap_s for meters in found if meters.largest_gap_s is not None]
    lines = []
    if rates and gaps:
        largest = formatting.duration(max(gaps))
        lines.append(f"at least {formatting.significant(min(rates))} readings a second, largest gap {largest}")
    for words, name in (("CPU time of a trial", "cpu_share"), ("time of its steps", "step_share")):
        shares = [share for meters in found if (share := getattr(meters, name)) is not None]
        if shares:
            lines.append(f"the meters took at most {formatting.significant(max(shares) * 100)} % of the {words}")
    return lines


def _environment(comparison: Comparison) -> Mapping[str, str]:
    found = next((t.record.environment for t in comparison.results.trials if t.record.environment is not None), None)
    if found is None:
        return {}
    facts = {
        "device": f"{found.device_name} ({found.device})",
        "driver": found.driver,
        "device memory": formatting.quantity(found.device_memory_bytes, "bytes"),
        "CPU": f"{found.cpu}, {found.cores} cores, {found.threads} threads used",
        "memory": formatting.quantity(found.memory_bytes, "bytes"),
        "platform": found.platform,
        "Python": found.python,
        **found.versions,
    }
    return {key: value for key, value in facts.items() if value is not None and value != formatting.ABSENT}


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    """The sweeps' settings as they were resolved; where that file is missing, those of a trial."""
    found = []
    for folder in comparison.results.folders:
        try:
            found.append((str(Path(folder) / "sweep.toml"), (Path(folder) / "sweep.toml").read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            record = next(t.record for t in comparison.results.trials if t.folder.is_relative_to(folder.resolve()))
            found.append((f"{folder}, trial {record.trial}", to_toml(record.settings)))
    return found
