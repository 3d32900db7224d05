"""`howlow sweep --until-decided`: the options that belong to it, and what it prints."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howlow.errors import UserError


@dataclass(frozen=True)
class UntilDecided:
    """What `--until-decided` asks, as typed; None: not given."""

    metric: str | None
    margin: float | None
    confidence: float | None
    max_time: float | None
    max_trials: int | None

    def refuse_alone(self) -> None:
        """Refuse these options without `--until-decided`."""
        for name, value in vars(self).items():
            if value is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {value}: it is of --until-decided; give both, or leave {option} out")

    def planned(self, settings: Any) -> Any:
        """The settings with all seeds that may be run."""
        from howlow.deciding import planned_settings

        return planned_settings(settings)

    def run(
        self,
        settings: Any,
        out: str,
        retry: Sequence[Any],
        accepted: Sequence[str],
        watched: Callable[[Callable[[Any], Any]], Any],
        report: Callable[[list[Path], list[str]], object],
    ) -> Any:
        """Run until decided, then print the report, the answer and why it ended; gives the trials that failed."""
        from howlow.deciding import SweepBudget, sweep_until_decided
        from howlow.reporting.looks import ending_line, look_line

        asked: dict[str, Any] = {"metric": self.metric, "margin": self.margin}
        if self.confidence is not None:
            asked["confidence"] = self.confidence
        budget = SweepBudget(self.max_time, self.max_trials)
        found = watched(
            lambda tell: sweep_until_decided(
                settings,
                out,
                **asked,
                budget=budget,
                retry=retry,
                accept_different=accepted,
                on_event=tell,
                on_look=lambda looks, names: print(look_line(looks, names), file=sys.stderr),
            )
        )
        report([Path(out)], list(accepted))
        self._print_answer(out, found.looks, accepted)
        print(ending_line(found.looks, len(found.result.records), found.planned))
        return found.result.failed

    def _print_answer(self, out: str, looks: Any, accepted: Sequence[str]) -> None:
        import howlow
        from howlow.reporting.recommendation import headline

        try:
            print(headline(howlow.recommend(out, **looks.terms, accept_different=accepted)))
        except UserError as error:
            print(f"howlow: no recommendation: {error}", file=sys.stderr)
