"""What a limit counts is at its highest over all phases, although each phase resets the allocator's peak."""

import os

import pytest
import torch

from howlow.memory import heap, peaks


class Allocator:
    """CUDA's caching allocator as far as its peak goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.peak = 0
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: self._reset())
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.peak)

    def take(self, size: int) -> None:
        self.reserved = size
        self.peak = max(self.peak, size)

    def _reset(self) -> None:
        self.peak = self.reserved


def test_a_phase_that_resets_the_peak_does_not_hide_what_was_taken_before(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, device = Allocator(monkeypatch), torch.device("cuda:0")
    allocator.take(99)
    allocator.take(5)
    with peaks.LimitedMemory(device) as taken:
        peaks.reset_peaks(device)
        allocator.take(70)
        allocator.take(10)
        peaks.reset_peaks(device)
        allocator.take(30)
    assert taken.highest_bytes == 70, "of the first phase, and not what was there before"
    with peaks.LimitedMemory(device) as taken:
        allocator.take(31)
    assert taken.highest_bytes == 31


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({}, ["256", "256"]),
        ({"LRU_CACHE_CAPACITY": "99"}, ["256", "99"]),
        ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "99"}, ["99", "256"]),
        ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "99"}, [None, "256"]),
    ],
)
def test_a_kept_heap_keeps_few_kernels_unless_the_environment_says_otherwise(
    told: dict[str, str], kept: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)  # it changes the process for good
    for name in (*heap.KERNELS_KEPT_BY, "DNNL_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")  # so that what is set here goes again
        monkeypatch.delenv(name)
    for name, number in told.items():
        monkeypatch.setenv(name, number)
    found = heap.keep_heap()
    assert [os.environ.get(name) for name in heap.KERNELS_KEPT_BY] == kept
    assert found == heap.Heap("default", min(int(number or 99) for number in kept))


@pytest.mark.parametrize("name", [*heap.KERNELS_KEPT_BY, "DNNL_PRIMITIVE_CACHE_CAPACITY"])
def test_the_fewest_kernels_that_a_library_keeps_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (*heap.KERNELS_KEPT_BY, "DNNL_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(one, raising=False)
    assert heap.kernels_kept() == 1024
    for told, number in (("64", 64), ("many", 1024), ("2000", 1024)):
        monkeypatch.setenv(name, told)
        assert heap.kernels_kept() == number


def test_a_bounded_heap_keeps_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    for name in heap.KERNELS_KEPT_BY:
        monkeypatch.setenv(name, "500")
    assert heap.bound_heap() == heap.Heap("bounded", heap.KERNELS_BOUNDED)
