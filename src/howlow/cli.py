"""The door: parse, call, print.

stdout is the result, stderr the talk. Exit codes:

    0         done
    1         something failed: a trial, a process that was killed, a disk that filled up in mid-sweep, or howlow itself
    2         the user can mend it: a mistake, a model or data that a library cannot take, a file that the system
              refused before the first trial
    130, 143  stopped by Ctrl-C or SIGTERM

Every error is one line. Where it came unforeseen, the line names the log file that holds the traceback, and says so if
it is a defect of howlow.
"""

import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand

import howlow
from howlow.cli_recommend import recommend_command
from howlow.cli_report import AcceptDifferent, print_report, report_command
from howlow.cli_until import UntilDecided
from howlow.console import make_safe
from howlow.errors import OURS, SYSTEM, UserError, lacks_access, raised_by, reason
from howlow.outcomes import DiskFullError, is_disk_full

T = TypeVar("T")
app = typer.Typer(
    name="howlow",
    help="How low can the LoRA rank go for this model, this data and this hardware? Measured, not guessed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("recommend")(recommend_command)
app.command("report")(report_command)


class _Described(TyperCommand):
    """A command whose options may give a setting as their help; its description is looked up when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the command's help."""
        from howlow.settings import setting_keys

        for option in self.params:
            key = getattr(option, "help", None)
            if key in setting_keys():
                option.help = f"{setting_keys()[key]}{_values(key)} [{key}]"  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _values(key: str) -> str:
    """The values of a setting that its type does not show."""
    from howlow.tasks import tasks

    return f": {', '.join(tasks())}" if key == "task.name" else ""


Source = Annotated[str | None, typer.Argument(metavar="[SETTINGS.toml|PRESET]", help="settings file or preset")]
Out = Annotated[str | None, typer.Option("--out", help="the run directory", metavar="DIR")]


@app.command("sweep", cls=_Described)
def sweep_command(
    source: Source = None,
    out: Out = None,
    model: Annotated[str | None, typer.Option("--model", help="model")] = None,
    task: Annotated[str | None, typer.Option("--task", help="task.name")] = None,
    train: Annotated[str | None, typer.Option("--train", help="task.train")] = None,
    test: Annotated[str | None, typer.Option("--test", help="task.test")] = None,
    ranks: Annotated[str | None, typer.Option("--ranks", help="1,8,64, or 1..64 for powers of two [lora.rank]")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="0,1,2: one trial a rank for each [seed]")] = None,
    baselines: Annotated[str | None, typer.Option("--baselines", help="base,full or none [baselines]")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", help="training.batch_size")] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="training.layout")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="run.workers")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any setting, as TOML")] = None,
    retry: Annotated[
        str | None, typer.Option("--retry", help="rerun trials that ended as any of failed,out_of_memory,diverged")
    ] = None,
    accept_different: AcceptDifferent = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and run nothing")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="submit to SLURM and return; later: show the state")] = False,
    until_decided: Annotated[bool, typer.Option("--until-decided", help="end when the recommendation holds")] = False,
    max_time: Annotated[float | None, typer.Option("--max-time", metavar="S", help="then end undecided")] = None,
    max_trials: Annotated[int | None, typer.Option("--max-trials", metavar="N", help="then end undecided")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="to decide by, as for recommend")] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="to decide by, as for recommend")] = None,
    confidence: Annotated[float | None, typer.Option("--confidence", metavar="P", help="as for recommend")] = None,
) -> None:
    """Run or resume a sweep: one fine-tuning per rank, measured and scored; ends with the report."""
    from howlow import settings as asked
    from howlow.cli_dry_run import print_dry_run

    flags = asked.table_of_flags(
        {
            "model": model,
            "task.name": task,
            "task.train": train,
            "task.test": test,
            "training.layout": layout,
            "training.batch_size": batch_size,
            "run.workers": workers,
            "baselines": baselines,
        },
        ranks=ranks,
        seeds=seeds,
    )
    overrides = [flags, *(asked.parse_assignment(text) for text in set_ or [])]
    settings = howlow.load_settings(source, overrides)
    statuses = _statuses(retry)
    accepted, until = accept_different or [], UntilDecided(metric, margin, confidence, max_time, max_trials)
    if not until_decided:
        until.refuse_alone()
    if dry_run:
        settings = until.planned(settings) if until_decided else settings
        print_dry_run(settings, out, statuses, accepted)
        return
    if out is None:
        raise UserError("--out DIR is missing: the folder in which the sweep keeps its records")

    if detach:
        _detach(settings, out, statuses, accepted, until_decided)
        return
    if until_decided:
        failed = until.run(settings, out, statuses, accepted, partial(_watched, out=out), print_report)
        _say_failed(failed, out)
        return
    _run_sweep(settings, out, statuses, accepted)


def _run_sweep(settings: Any, out: str, retry: list[Any], accepted: list[str]) -> None:
    """Run or resume a sweep, watched, and print its report."""
    from howlow.sweeping.sweep import sweep

    result = _watched(lambda tell: sweep(settings, out, retry=retry, accept_different=accepted, on_event=tell), out)
    _print_answer(settings, out, result.failed, accepted)


def _detach(settings: Any, out: str, retry: list[Any], accepted: list[str], until_decided: bool) -> None:
    """Submit a sweep and print its state; once all has ended, its report."""
    from howlow.cli_detach import print_detached

    if until_decided:
        raise UserError("--detach with --until-decided: each round needs a look at the last one; give one of the two")
    records = print_detached(settings, out, retry, accepted)
    if records is not None:
        _print_answer(settings, out, [record for record in records if record.status != "done"], accepted)


def _print_answer(settings: Any, out: str, failed: Iterable[Any], accepted: list[str]) -> None:
    """The report of a sweep that has ended, and what it recommends."""
    print_report([Path(out)], accepted)
    if settings.lora.start is None:
        _print_recommendations(Path(out), accepted)
    else:
        _print_worth_training(Path(out))
    _say_failed(failed, out)


@app.command("shrink", cls=_Described)
def shrink_command(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="the folder of a trained LoRA adapter")],
    ranks: Annotated[str, typer.Option("--ranks", help="1,8,32, or 1..32 for powers of two")],
    out: Annotated[str, typer.Option("--out", help="the run directory, a new folder", metavar="DIR")],
    test: Annotated[str | None, typer.Option("--test", help="task.test")] = None,
    continue_steps: Annotated[
        int, typer.Option("--continue-steps", metavar="N", min=0, help="lora.continue_steps")
    ] = 0,
    model: Annotated[str | None, typer.Option("--model", help="the adapter's base, where it is elsewhere now")] = None,
    task: Annotated[str | None, typer.Option("--task", help="task.name")] = None,
    train: Annotated[str | None, typer.Option("--train", help="task.train")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any setting, as TOML")] = None,
) -> None:
    """Cut a trained adapter to smaller ranks by its singular values, save each and score it as its trial was."""
    from howlow import settings as asked
    from howlow.sweeping.shrinking import refuse_existing, run_beside

    named = {"model": model, "task.name": task, "task.train": train, "task.test": test}
    overrides = [asked.table_of_flags(named), *(asked.parse_assignment(text) for text in set_ or [])]
    settings = howlow.shrink_settings(adapter, asked.parse_ranks(ranks), overrides, continue_steps=continue_steps)
    refuse_existing(out, settings)
    _run_sweep(settings, out, [], [])
    beside = run_beside(settings)
    if beside is not None:
        _say(f"beside the ranks that were trained: howlow report {beside} {out}")


@app.command("worker")
def worker_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the run directory of a started sweep", readable=False)],
    trial: Annotated[str | None, typer.Option("--trial", metavar="NAME", help="only this trial")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="as run.device, for this worker")] = None,
    accept_different: AcceptDifferent = None,
) -> None:
    """Take and run trials of a started sweep, on any machine that sees DIR, until none is left to take."""
    from howlow.worker.joining import work

    accepted = accept_different or []
    done = _watched(
        lambda tell: work(folder, trial=trial, device=device, accept_different=accepted, on_event=tell), folder
    )
    others = "; should their worker die, howlow worker or howlow sweep takes them over" if done.left else ""
    _say(f"howlow: trials run by this worker: {len(done.records)}; still run by others: {done.left}{others}")
    _say_failed([record for record in done.records if record.status != "done"], folder)


def _watched(run: Callable[[Any], T], out: Path | str) -> T:
    """Show the progress of a sweep or a worker; ends the program where a signal stopped it or something failed."""
    from howlow.jobs import JobFailedError
    from howlow.progress import Progress

    progress, kept = Progress(), f"what was measured is kept in {out}, and the same command resumes"
    try:
        with progress:
            return run(progress.on_event)
    except DiskFullError as error:
        _say(f"howlow: the disk is full: {error}; make room, then the same command resumes")
        raise typer.Exit(1) from None
    except JobFailedError as error:
        _say(f"howlow: {error}{f'; {kept}' if progress.has_begun else ''}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interrupt:
        _say(f"howlow: stopped; {kept}")
        raise typer.Exit(143 if isinstance(interrupt, _TerminatedError) else 130) from None
    except UserError:
        raise
    except Exception as error:
        if not progress.has_begun:
            raise
        _say(f"howlow: {_unforeseen(error, out)}; {kept}")
        raise typer.Exit(1) from None


def _say_failed(records: Iterable[Any], out: Path | str) -> None:
    """Name the trials that failed, and end with exit code 1 where there are any."""
    from howlow.reporting.failure import failure_words

    failed = list(records)
    for record in failed:
        log = f"; its log is {out}/trials/{record.trial}/log.txt" if record.status == "failed" else ""
        _say(f"howlow: {record.trial} ended as {record.status}: {failure_words(record)}{log}")
    if failed:
        raise typer.Exit(1)


def _statuses(text: str | None) -> list[Any]:
    from howlow.sweeping.sweep import RETRYABLE

    asked = [part.strip() for part in (text or "").split(",") if part.strip()]
    for status in asked:
        if status not in RETRYABLE:
            raise UserError(f"--retry {status}: one or more of {','.join(RETRYABLE)} are expected")
    return asked


def _print_recommendations(folder: Path, accept_different: list[str]) -> None:
    """The answer of a sweep that just ended, one sentence for each of its settings."""
    from howlow.reporting.recommendation import headlines

    try:
        for line in headlines(folder, accept_different):
            print(line)
        _say(f"why, and what it costs: howlow recommend {folder}")
    except UserError as error:
        _say(f"howlow: no recommendation: {error}")


def _print_worth_training(folder: Path) -> None:
    """What cut ranks suggest: none of them was trained, so none is recommended."""
    from howlow.reporting.words import worth_training_lines

    for line in worth_training_lines(folder):
        print(line)


@app.command("env")
def env_command(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Say what this machine can measure and what it cannot, with the reason and what to do about it."""
    from howlow.memory.peaks import reset_peaks
    from howlow.meters.machine import choose_device
    from howlow.meters.survey import survey
    from howlow.reporting.machine import survey_text
    from howlow.trial.burst import load_for

    device = choose_device("auto")
    found = survey(device, reset_peaks(device), lambda instrument: load_for(instrument, device))
    print(json.dumps(found.document(), indent=1) if as_json else survey_text(found))


@app.command("score", cls=_Described)
def score_command(
    task: Annotated[str, typer.Argument(metavar="TASK", help="task.name")],
    data: Annotated[str, typer.Option("--data", help="test data of the task: a file")],
    predictions: Annotated[str, typer.Option("--predictions", help="JSON: {example id: text}")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Score predictions made elsewhere, as a sweep scores its own."""
    from howlow.reporting.scores import scores_text
    from howlow.tasks import score_predictions

    scores = score_predictions(task, data, predictions)
    for warning in scores.warnings:
        _say(f"warning: {warning}")
    print(json.dumps(scores.document(), indent=1) if as_json else scores_text(scores.figures))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it; handled like Ctrl-C."""


def _terminate(*_: object) -> NoReturn:
    raise _TerminatedError


def _commands() -> None:
    """Run the command that was typed; a flag that it does not know is a mistake like any other."""
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # typer has click's errors under a private name, which differs from version to version.
        if not hasattr(error, "format_message"):
            raise
        if "--help" in error.format_message():  # no command was typed: the message is the whole help
            _say(error.format_message())
            sys.exit(2)
        typed = getattr(getattr(error, "ctx", None), "command_path", "howlow")
        raise UserError(f"{error.format_message().rstrip('.')}; {typed} --help lists what there is") from None
    sys.exit(code or 0)


def main(run: Callable[..., Any] = _commands) -> None:
    """The console script."""
    make_safe()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            run()
        finally:
            sys.stdout.flush()  # a full disk under it shows now, not when the interpreter ends
    except UserError as error:
        _say(f"howlow: {error}")
        sys.exit(2)
    except Exception as error:
        _say(f"howlow: {_unforeseen(error, '.')}")
        sys.exit(2 if raised_by(error) == SYSTEM and not is_disk_full(error) else 1)


def _unforeseen(error: Exception, out: Path | str) -> str:
    """An error that no command expects, in one line."""
    from howlow.jobs import JobFailedError
    from howlow.places import full_disk, told

    if isinstance(error, DiskFullError | JobFailedError):
        return reason(error)
    who = raised_by(error)
    if is_disk_full(error):
        return f"the disk is full: {full_disk(error, out)}; make room"
    if lacks_access(error):
        return told(error)
    if who == SYSTEM:
        return f"{told(error)}; the traceback is in {_kept_traceback(error)}"
    if who == OURS:
        return f"a defect in howlow: {told(error)}; please report it with the traceback in {_kept_traceback(error)}"
    return f"{who} failed: {told(error)}; the traceback is in {_kept_traceback(error)}"


def _kept_traceback(error: Exception) -> str:
    """The file into which an error's traceback was written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="howlow-", suffix=".log", delete=False
        ) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"no file ({reason(problem)})"
    return file.name
