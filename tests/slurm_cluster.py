"""A real SLURM of one node in a folder of its own: munged, slurmctld and slurmd as processes that end with the test.

with slurm_running(folder) as environment: subprocess.run(["squeue"], env=environment)
"""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from howlow.jobs import Link
from howlow.jobs.remote import RunTrialJob
from howlow.outcomes import StoppedError

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
_UP_WITHIN_S = 60.0
_CONFIG = """
ClusterName=howlow
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no SLURM can be started here; None where one can."""
    missing = [name for name in COMMANDS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def slurm_running(folder: Path, cores: int) -> Iterator[dict[str, str]]:
    """Start SLURM; gives the environment in which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(folder=folder, host=host, cores=cores, controller=_free_port(), daemon=_free_port())
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": _path()}
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_started(folder, environment, *_munged(folder)))
        _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        started.append(_started(folder, environment, "slurmctld", "-D", "-f", str(config)))
        started.append(_started(folder, environment, "slurmd", "-D", "-f", str(config), "-N", host))
        _wait_for(lambda: _is_idle(environment), folder)
        yield environment
    finally:
        _end_jobs(environment)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _end_jobs(environment: dict[str, str]) -> None:
    """Kill what still runs, and wait: a step outlives its daemons."""
    for _ in range(40):
        kill = ["scancel", "--signal=KILL", "--full", "--user=root"]
        for command in (kill, ["scancel", "--user=root"]):
            subprocess.run(command, env=environment, check=False, timeout=30, capture_output=True)
        queue = ["squeue", "--noheader"]
        if not subprocess.run(queue, env=environment, check=False, timeout=30, capture_output=True).stdout.strip():
            return
        time.sleep(0.25)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _munged(folder: Path) -> tuple[str, ...]:
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
    files["seed-file"] = "munge.seed"
    return ("munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items()))


def _started(folder: Path, environment: dict[str, str], *command: str) -> "subprocess.Popen[bytes]":
    with (folder / "daemons.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
    )
    return "idle" in done.stdout


def _wait_for(condition: Callable[[], bool], folder: Path) -> None:
    until = time.monotonic() + _UP_WITHIN_S
    while not condition():
        assert time.monotonic() < until, "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


# -- a job without a trial ------------------------------------------------------------------------------------------


class Patient(RunTrialJob):
    """Waits for a signal when it runs for the first time; returns when it runs again."""

    entry = "slurm_cluster.patient_entry"


def patient_entry(job: Patient, link: Link) -> int:
    begun = job.submitter.run_directory / f"begun-{job.trial}"
    if begun.exists():
        return 0
    begun.write_text("")
    try:
        threading.Event().wait(600)
    except KeyboardInterrupt:
        begun.with_name(f"saved-{job.trial}").write_text("")
        raise StoppedError from None
    raise AssertionError("no signal came")
