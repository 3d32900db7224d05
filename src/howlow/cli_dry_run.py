"""`howlow sweep --dry-run`: what a sweep would do."""

from typing import Any


def print_dry_run(settings: Any, out: str | None, retry: list[Any], accept_different: list[str]) -> None:
    """Print the trials in their order, what was left out of the data, and the warnings."""
    from howlow.sweeping.sweep import dry_run

    plan = dry_run(settings, out, retry=retry, accept_different=accept_different)
    finished = sum(status == "done" for status in plan.ended.values())
    print(f"{len(plan.plans)} trials, {finished} of them finished; to run, in this order:")
    for name in plan.to_run:
        print(f"  {name}")
    for setting in plan.searched:
        share = f"less {settings.run.memory_margin:.3g} of it"
        limit = settings.run.memory_limit_bytes
        held = f"run.memory_limit_bytes = {limit}" if limit else "the memory then free"
        print(f'{setting} = "max": each of these trials first searches for the batch that fits into {held}, {share}')
    for name, status in plan.ended.items():
        if status != "done":
            print(f"not run again: {name} ended as {status}; --retry {status} runs it again")
    for preparation in plan.preparations:
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
        print(f"model: {report.architecture}, {report.total_parameters} parameters")
        for warning in report.warnings:
            print(f"{warning.kind}: {warning.detail}; {warning.remedy}")
