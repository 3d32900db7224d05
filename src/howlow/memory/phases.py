"""The memory of this process around the phases of a trial: one phase's peak must not be another's."""

from dataclasses import dataclass

import torch

from howlow.memory import heap, peaks


@dataclass(frozen=True)
class ProcessMemory:
    """What a phase needs of this process's memory (`howlow.meters.phase.PhaseMemory`)."""

    device: torch.device

    def begin(self) -> str | None:
        """Free what the last phase left and reset the peaks; returns why resident memory's peak cannot be reset."""
        heap.release(self.device)
        return peaks.reset_peaks(self.device)

    def peaks(self) -> peaks.Peaks:
        """The peaks since `begin`."""
        return peaks.peaks(self.device)
