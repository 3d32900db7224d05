"""What a record says about the machine: variables and switches that change speed, and the sources of howlow."""

import subprocess
from pathlib import Path

import pytest
import torch

from howlow.meters.machine import environment, variables_of_speed
from howlow.meters.processor import governor
from howlow.records import own_sources


def test_variables_that_change_speed_are_kept_and_no_others() -> None:
    of_speed = {
        **dict.fromkeys(("ONEDNN_MAX_CPU_ISA", "DNNL_VERBOSE", "MKL_CBWR", "OMP_NUM_THREADS", "KMP_AFFINITY"), "1"),
        **dict.fromkeys(("GOMP_CPU_AFFINITY", "ATEN_CPU_CAPABILITY", "MALLOC_ARENA_MAX", "CUDA_LAUNCH_BLOCKING"), "1"),
        **dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "TORCH_CUDNN_V8_API_DISABLED", "NVIDIA_TF32_OVERRIDE"), "1"),
        "LRU_CACHE_CAPACITY": "1",
    }
    others = {
        "HOME": "/root",
        "PATH": "",
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_MODULE_LOADING": "LAZY",
        "KMP_DUPLICATE_LIB_OK": "True",
        "KMP_INIT_AT_FORK": "FALSE",
        "HF_TOKEN": "secret",
    }
    assert variables_of_speed(of_speed | others) == of_speed
    assert variables_of_speed({"CUDA_MODULE_LOADING": "EAGER"}) == {"CUDA_MODULE_LOADING": "EAGER"}


def test_variables_that_a_trial_sets_itself_are_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment(torch.device("cpu")).variables
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    assert environment(torch.device("cpu")).variables == before


def test_switches_of_torch_are_in_the_record() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert (environment(torch.device("cpu")).switches or {})["matmul_precision"] == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_governor_is_read_where_linux_tells_it(tmp_path: Path) -> None:
    assert governor(tmp_path) is None
    for cpu, name in (("cpu0", "performance"), ("cpu1", "powersave"), ("cpu2", "performance")):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_governor").write_text(f"{name}\n")
    assert governor(tmp_path) == "performance, powersave"


# -- the sources ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    for name in ("engine", "reporting"):
        (package / name).mkdir(parents=True)
        (package / name / "part.py").write_text("one = 1\n")
    (package / "__init__.py").write_text("")
    return package


@pytest.mark.parametrize(("changed", "counts"), [("engine/part.py", True), ("reporting/part.py", False)])
def test_the_hash_is_of_the_sources_that_a_trial_runs(package: Path, changed: str, counts: bool) -> None:
    own_sources.code_sha256.cache_clear()
    before = own_sources.code_sha256(package)
    (package / changed).write_text("one = 2\n")
    own_sources.code_sha256.cache_clear()
    assert (own_sources.code_sha256(package) != before) == counts


def test_a_file_that_moves_is_another_source(package: Path) -> None:
    own_sources.code_sha256.cache_clear()
    before = own_sources.code_sha256(package)
    (package / "engine" / "part.py").rename(package / "engine" / "other.py")
    own_sources.code_sha256.cache_clear()
    assert own_sources.code_sha256(package) != before


def test_git_tells_the_commit_and_whether_files_differ_from_it(package: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        command = ["git", "-C", str(package.parent), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def told() -> str | None:
        own_sources.revision.cache_clear()
        return own_sources.revision(package)

    git("init", "--quiet")
    assert told() is None, "installed below a repository that does not hold it"
    git("add", "package")
    git("commit", "--quiet", "--message", "first")
    assert told() == git("rev-parse", "HEAD")
    (package / "engine" / "part.py").write_text("one = 2\n")
    assert told() == f"{git('rev-parse', 'HEAD')}-dirty"
