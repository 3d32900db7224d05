"""`howlow sweep --dry-run`: what a sweep would do, and what it found in its data and model."""

from collections.abc import Sequence

from howlow.progress import size_lines
from howlow.records import RecordWarning, Status
from howlow.settings import Settings
from howlow.sweeping.rehearsal import DryRun
from howlow.sweeping.setup import Preparation
from howlow.sweeping.sweep import dry_run


def print_dry_run(
    settings: Settings, out: str | None, retry: Sequence[Status], accept_different: Sequence[str]
) -> None:
    """Say what would be done, and run nothing."""
    plan = dry_run(settings, out, retry=retry, accept_different=accept_different)
    _print_trials(plan)
    for setting in plan.searched:
        share = f"less {settings.run.memory_margin:.3g} of it"
        limit = settings.run.memory_limit_bytes
        held = f"run.memory_limit_bytes = {limit}" if limit else "the memory then free"
        print(f'{setting} = "max": each of these trials first searches for the batch that fits into {held}, {share}')
    for name, status in plan.ended.items():
        if status != "done":
            print(f"not run again: {name} ended as {status}; --retry {status} runs it again")
    for preparation in plan.preparations:
        _print_preparation(preparation)
    _print_warnings(plan.warnings)


def _print_trials(plan: DryRun) -> None:
    finished = sum(status == "done" for status in plan.ended.values())
    print(f"{len(plan.plans)} trials, {finished} of them finished; to run, in this order:")
    for name in plan.to_run:
        print(f"  {name}")


def _print_preparation(preparation: Preparation) -> None:
    report, data = preparation.report, preparation.report.data
    for side in ("train", "test"):
        examples, groups, tokens = (getattr(data, f"{side}_{what}") for what in ("examples", "groups", "tokens"))
        read = [one.files_read for one in data.sources if (one.side, one.format) == (side, "folder")]
        files = f", from {read[0]} files" if read else ""
        print(f"{side}: {examples} examples in {groups} groups, {tokens} tokens{files}")
    print(f"longest training example: {data.longest_tokens} tokens")
    print(f"left out for overlap with the test data: {data.overlap_left_out} training examples")
    print(f"left out for having no tokens: {data.without_tokens} training examples")
    print(f"dropped as too long: {data.dropped} training examples; cut: {data.cut} examples")
    if data.validation_examples is not None:
        print(f"set aside for validation: {data.validation_examples} training examples")
    if data.general_windows is not None:
        print(f"general text: {data.general_windows} windows, {data.general_tokens} tokens")
    print(f"model: {report.architecture}, {report.total_parameters} parameters")
    for line in size_lines(preparation.sizes) if preparation.sizes is not None else ():
        print(line)
    _print_warnings(report.warnings)


def _print_warnings(warnings: Sequence[RecordWarning]) -> None:
    for warning in warnings:
        print(f"{warning.kind}: {warning.detail}; {warning.remedy}")
