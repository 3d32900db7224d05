"""What a dry run leaves behind: what a sweep would do, and no file."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from howlow.batch_search.driver import searched_settings
from howlow.errors import UserError
from howlow.jobs import JobFailedError
from howlow.records import RecordWarning, Status
from howlow.settings import TrialPlan
from howlow.sweeping.setup import Preparation


@dataclass(frozen=True)
class DryRun:
    """What a sweep would do: run those of its `plans` that have not `ended` (name -> status).

    warnings: what these trials would warn about before their first steps, beyond what the preparations say.
    """

    plans: tuple[TrialPlan, ...]
    ended: Mapping[str, Status]
    preparations: tuple[Preparation, ...]
    warnings: tuple[RecordWarning, ...] = ()

    @property
    def to_run(self) -> tuple[str, ...]:
        """The names of the trials that would be run, in their order."""
        return tuple(plan.name for plan in self.plans if plan.name not in self.ended)

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings that are "max" in any of them."""
        pending = [plan for plan in self.plans if plan.name not in self.ended]
        return tuple(
            dict.fromkeys(setting for plan in pending for setting in searched_settings(plan.kind, plan.settings))
        )


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder; it stays where the work in it ended with an error, whose line names the log in it."""
    folder = Path(tempfile.mkdtemp(prefix="howlow-"))
    try:
        yield folder
    except (UserError, JobFailedError) as error:
        if str(folder) not in str(error):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
