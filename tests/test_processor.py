"""What Linux says of the processor, from a tree of files as it writes them."""

from pathlib import Path

import pytest

from howlow.meters import processor


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("intel_pstate/no_turbo", "0", True),
        ("intel_pstate/no_turbo", "1", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
        ("cpufreq/boost", "", None),
    ],
)
def test_whether_turbo_is_allowed(tmp_path: Path, file: str, text: str, told: bool | None) -> None:
    assert processor.boost(tmp_path) is None
    write(tmp_path / file, text)
    assert processor.boost(tmp_path) is told


def test_the_clock_is_the_mean_of_the_allowed_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "allowed_cores", lambda: [1, 3])
    assert processor.clock_hz(tmp_path) is None
    for core, kilohertz in enumerate((9_000_000, 2_000_000, 9_000_000, 3_000_000)):
        write(tmp_path / f"cpu{core}" / "cpufreq" / "scaling_cur_freq", str(kilohertz))
    assert processor.clock_hz(tmp_path) == 2.5e9


def test_the_memory_nodes_of_a_process_are_those_of_its_cores(tmp_path: Path) -> None:
    assert processor.nodes([0], tmp_path) is None
    write(tmp_path / "node0" / "cpulist", "0-3,8-11")
    write(tmp_path / "node1" / "cpulist", "4-7,12")
    write(tmp_path / "node2" / "cpulist", "")
    assert processor.nodes([1, 9], tmp_path) == (0,)
    assert processor.nodes([3, 4], tmp_path) == (0, 1)


def test_the_memory_node_of_a_card(tmp_path: Path) -> None:
    assert processor.node_of_pci("00000000:4B:00.0", tmp_path) is None
    write(tmp_path / "0000:4b:00.0" / "numa_node", "1")
    assert processor.node_of_pci("00000000:4B:00.0", tmp_path) == 1
    write(tmp_path / "0000:4b:00.0" / "numa_node", "-1")
    assert processor.node_of_pci("00000000:4B:00.0", tmp_path) is None
