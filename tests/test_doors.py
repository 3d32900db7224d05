"""The door as a user meets it: any console, closed streams, files without permission, models of other kinds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_records import record

from howlow import load_settings as load
from howlow.errors import UserError
from howlow.records import RecordWarning, WarningKind, write_record
from howlow.settings import merge, to_toml

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells and permissions of POSIX")

HOWLOW = [sys.executable, "-m", "howlow"]
NO_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
Done = subprocess.CompletedProcess[bytes]


def in_shell(line: str, *arguments: str | Path, **environment: str) -> Done:
    """A line of shell in which "$@" is howlow with these arguments."""
    command = ["sh", "-c", line, "sh", *HOWLOW, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, check=False)


def said(done: Done) -> list[str]:
    """The lines on stderr, without progress; never a traceback."""
    text = done.stderr.decode("utf-8", errors="replace")
    assert "Traceback" not in text + done.stdout.decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line != "preparing: data, tokens, model"]


def refused(done: Done, *words: str) -> str:
    """Exit code 2, and one line on stderr that holds the words."""
    lines = said(done)
    assert (done.returncode, done.stdout, len(lines)) == (2, b"", 1), lines
    assert all(word in lines[0] for word in words), lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of one record whose texts no narrow console can show."""
    out = tmp_path_factory.mktemp("reported") / "out"
    warning = RecordWarning(kind=WarningKind.ENERGY_ABSENT, detail="kein Zähler → 電力")
    (out / "trials" / "r0008-s0").mkdir(parents=True)
    write_record(out / "trials" / "r0008-s0", record(warnings=(warning,)))
    return out


# -- consoles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("console", ["cp1252", "ascii", "utf-8"])
def test_a_console_shows_what_it_can_and_files_are_utf8(reported: Path, console: str) -> None:
    done = in_shell('"$@"', "report", reported, PYTHONIOENCODING=console)
    assert (done.returncode, len(said(done))) == (0, 1)
    table = done.stdout.decode(console)
    kept = "kein Zähler" if console != "ascii" else r"kein Z\xe4hler"
    assert kept in table
    assert ("電力" if console == "utf-8" else r"\u96fb\u529b") in table
    assert ("ᵃ warning:" if console == "utf-8" else "a warning:") in table
    assert "kein Zähler" in (reported / "report.html").read_text(encoding="utf-8")


def test_json_is_ascii_on_every_console(reported: Path) -> None:
    done = in_shell('"$@"', "report", reported, "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout.decode("ascii"))["warnings"]


SAFE = "import sys; from howlow.console import make_safe; make_safe(); "


def safe(line: str, code: str, *options: str) -> Done:
    """A program with safe streams, within a line of shell."""
    command = ["sh", "-c", line, "sh", sys.executable, *options, "-c", SAFE + code]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 1, 2}], ids=["stdin", "stdout", "stderr", "all"])
def test_a_closed_stream_takes_no_file_and_costs_nothing(closed: set[int], options: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    code = f"file = open({str(kept)!r}, 'w'); assert file.fileno() > 2; print('result'); print('talk', file=sys.stderr)"
    closing = " ".join(f"{number}>&-" for number in closed)
    done = safe(f'"$@" {closing}', f"{code}; file.write('kept'); sys.stdin.read()", *options)
    assert (done.returncode, kept.read_text()) == (0, "kept")
    assert done.stdout == (b"" if 1 in closed else b"result\n")
    assert done.stderr == (b"" if 2 in closed else b"talk\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_changes_no_exit_code(stream: str) -> None:
    code = f"import os; os.dup2(os.dup(1), 2); [print('line' * 99, file=sys.{stream}, flush=True) for _ in range(2000)]"
    done = safe('{ "$@"; echo $? >&3; } 3>&2 2>/dev/null | head -1', code + "; sys.exit(7)")
    assert (done.stdout, done.stderr) == (b"line" * 99 + b"\n", b"7\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_result_is_told_and_under_the_talk_it_is_not(reported: Path) -> None:
    done = in_shell('"$@" >/dev/full', "report", reported)
    assert done.returncode == 1
    assert said(done)[-1].startswith("howlow: the disk is full: standard output: No space left on device")
    assert in_shell('"$@" 2>/dev/full', "report", reported).returncode == 0


def test_a_program_that_has_streams_of_its_own_keeps_them() -> None:
    code = "import io, sys; mine = sys.stdout = io.StringIO(); from howlow.console import make_safe; make_safe(); "
    subprocess.run([sys.executable, "-c", code + "assert sys.stdout is mine"], check=True)


# -- whatever a user can cause is one line --------------------------------------------------------------------------


@pytest.fixture
def asked(tiny_table: dict[str, Any], tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a tiny sweep with changes."""

    def arguments(**changes: Any) -> list[str]:
        path = tmp_path / "settings.toml"
        small = merge(tiny_table, {"grid": {"lora.rank": [1]}, "baselines": []})
        path.write_text(to_toml(load(None, [merge(small, changes)])), encoding="utf-8")
        return ["sweep", str(path), "--out", str(tmp_path / "out")]

    return arguments


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Takes all permissions from a file or folder; they are given back in the end."""
    taken: list[Path] = []

    def close(path: Path) -> Path:
        taken.append(path)
        path.chmod(0)
        return path

    yield close
    for path in taken:
        path.chmod(0o700)


def without_root(command: Sequence[str | Path]) -> Done:
    """A command without the right to pass over permissions."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = NO_ROOT
        if shutil.which("setpriv") is None or subprocess.run([*NO_ROOT, "true"], check=False).returncode != 0:
            pytest.skip("the tests run as root, and setpriv cannot take its rights away")
    return subprocess.run([*prefix, *map(str, command)], capture_output=True, check=False)


@pytest.mark.slow
def test_data_without_permission_is_one_line(
    asked: Callable[..., list[str]], closed: Callable[[Path], Path], tiny_squad: tuple[Path, Path], tmp_path: Path
) -> None:
    secret = closed(Path(shutil.copy(tiny_squad[0], tmp_path / "secret.json")))
    line = refused(without_root([*HOWLOW, *asked(), "--train", secret]), str(secret), "Permission denied")
    assert "--out" not in line


def test_data_in_a_folder_without_permission_is_one_line(
    asked: Callable[..., list[str]], closed: Callable[[Path], Path], tmp_path: Path
) -> None:
    inside = tmp_path / "closed" / "train.json"
    inside.parent.mkdir()
    closed(inside.parent)
    refused(without_root([*HOWLOW, *asked(), "--train", inside]), str(inside), "Permission denied")


LOADING = """
import sys
from pathlib import Path
from howlow.engine import model
from howlow.engine.references import locate
from howlow.errors import UserError
for name in sys.argv[2:]:
    file = Path(sys.argv[1]) / name
    file.chmod(0)
    try:
        model.load_tokenizer(locate(sys.argv[1]), None, None, False)
    except UserError as error:
        print(error)
    file.chmod(0o600)
    locate.cache_clear()
"""


@pytest.mark.slow
def test_a_models_file_without_permission_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    lines = without_root([sys.executable, "-c", LOADING, folder, *names]).stdout.decode().splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert f"{folder / name}: Permission denied" in line


def test_a_cache_that_cannot_be_written_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from howlow.engine.references import locate

    (tmp_path / "cache").write_text("a file in the place of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=f"its weights are kept in {tmp_path}/cache/howlow.*; set XDG_CACHE_HOME"):
        locate(str(gguf))


def test_a_long_name_of_the_temporary_folder_is_no_matter(tmp_path: Path) -> None:
    folder = tmp_path / ("t" * 120)
    folder.mkdir()
    code = "from howlow.executors import fork_server as f; f._have_short_folder(); print(f.util.get_temp_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout) < 60
    assert list(folder.iterdir()) == []


# -- models that cannot be used -------------------------------------------------------------------------------------

OWN_CODE = """
from transformers import LlamaForCausalLM
class OddError(Exception):
    pass
class Odd(LlamaForCausalLM):
    def forward(self, *arguments, **named):
        raise OddError("shapes of another world")
"""


@pytest.mark.slow
def test_a_model_whose_code_fails_is_one_line_that_names_the_log(
    asked: Callable[..., list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "odd"))
    (model / "modeling_odd.py").write_text(OWN_CODE)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_odd.Odd"}}))
    done = in_shell('"$@"', *asked(model=str(model), trust_remote_code=True), HF_HOME=str(tmp_path / "hf"))
    log = tmp_path / "out/.howlow/preparation.log"
    refused(done, f"model {model}", "its own code raised OddError: shapes of another world", f"traceback is in {log}")
    assert "Traceback" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "T5ForConditional.* encoder-decoder"),
        ({"model_type": "qwen2_vl"}, "Qwen2VLConfig .* text together with images"),
        ({"model_type": "vit"}, "ViTConfig .* of another kind"),
    ],
)
def test_models_of_another_kind_are_told_which_kind_is_needed(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from howlow.engine import model
    from howlow.engine.references import locate

    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{words}.*a causal language model is needed"):
        model.load_config(locate(str(tmp_path), random_weights=True), None, False)
