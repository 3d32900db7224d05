"""A job for tests: the probes of a script, one after the other in one process of a CPU, up to its heap's real limit."""

from typing import ClassVar

from howlow.batch_search import probe
from howlow.batch_search.search import BatchQuestion, LargestBatch, Try
from howlow.jobs import LargestFound, Link, ProbeJob


class ScriptedProbes(ProbeJob):
    """Probe these batches, and share the process as on CUDA."""

    entry: ClassVar[str] = "scripted_probes.entry"

    script: tuple[int, ...]


def entry(job: ScriptedProbes, link: Link) -> LargestFound | None:
    """In a process of its own, in which these changes end."""

    def scripted(question: BatchQuestion) -> Try | LargestBatch:
        done = len(question.probes)
        return Try(job.script[done]) if done < len(job.script) else LargestBatch(job.script[0])

    probe.next_step = scripted
    probe._LEFT_OVER = 0.5  # compiled kernels stay in a CPU's heap
    probe.shares_processes = lambda device: True
    return probe.probe_entry(job, link)
