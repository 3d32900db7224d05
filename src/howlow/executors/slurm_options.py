"""`slurm.options`: further options of sbatch, and which of them howlow keeps for itself."""

from howlow.errors import UserError

_HAVE_A_SETTING = {
    "account": "slurm.account",
    "cpus-per-task": "slurm.cpus_per_trial",
    "gres": "slurm.gres",
    "mem": "slurm.mem",
    "partition": "slurm.partition",
    "qos": "slurm.qos",
    "signal": "slurm.notice_s",
    "time": "slurm.time_limit_min",
}
_HOWLOW_SETS = (
    *("array", "dependency", "error", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "output", "requeue"),
    *("parsable", "quiet", "test-only", "wait", "wrap"),
)


def option_of_sbatch(text: str) -> tuple[str, str | bool]:
    """One option as submitit takes it: its name, with underscores, and its value; True where it has none.

    Raises:
        UserError: it is no option, or howlow sets it.
    """
    name, equals, value = text.removeprefix("--").partition("=")
    if not text.startswith("--") or not name or any(character.isspace() for character in name):
        raise UserError(f'slurm.options: {text!r} is no option; as sbatch takes it, "--KEY=VALUE" is expected')
    name = name.replace("_", "-")
    if name in _HAVE_A_SETTING:
        raise UserError(f"slurm.options: {text!r}: --{name} has a setting of its own; set {_HAVE_A_SETTING[name]}")
    if name in _HOWLOW_SETS:
        raise UserError(
            f"slurm.options: {text!r}: howlow needs --{name} as it sets it itself: one array, one task a trial, and "
            "jobs that come back; leave it out"
        )
    return name.replace("-", "_"), value if equals else True
