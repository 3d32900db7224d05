"""The checks of `gpu.py`: each runs in a process of its own, and keeps whatever it finds as soon as it has found it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import peers
from gpu_engine import engine_large, engine_small, ranks
from gpu_study import study
from gpu_subject import LARGE, ROOT, SMALL, Subject, loaded, model_name, questions, tokenizer_setting
from gpu_timings import copied_bytes_per_s, freed, timed_continuation, timed_generate
from peers import Reply

HERE = Path(__file__).resolve().parent
READS_BYTES_PER_S = 3.0e12  # an H100's memory
SEARCHED_RANKS = (8, 64)
_LOOKS_EVERY_S = 1.0
Keep = Callable[[Reply], None]


def machine(work: Path, _: bool, keep: Keep) -> Reply:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    keep(found := {"device": device, "torch": torch.__version__})
    env = subprocess.run([sys.executable, "-m", "howlow", "env"], capture_output=True, text=True, check=True).stdout
    print(env)
    (work / "env.txt").write_text(env)
    return found | {"env": env.splitlines()}


def tests(_: Path, __: bool, keep: Keep) -> Reply:
    """Run the tests that only a GPU can pass; each is kept as it ends."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-rfEs", "--durations=0", "--no-header"]
    command += ["-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")]
    found: Reply = {"ended": [], "not_passed": [], "summary": None}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in map(str.strip, process.stdout):
            print(line, flush=True)
            if "::" in line and "%]" in line:  # the test's name, how it ended, and how far the run is
                found["ended"].append(line)
            if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  ")):
                found["not_passed"].append(line)
            found["summary"] = line or found["summary"]
            keep(found)
    return found if process.returncode == 0 else found | {"error": f"pytest ended with {process.returncode}"}


def meters(_: Path, is_dry: bool, keep: Keep) -> Reply:
    """Measure what the meters cost; each part is kept as it is printed."""
    steps, seconds = ("80", "2") if is_dry else ("40", "6")
    command = [sys.executable, str(HERE / "meter_overhead.py"), "--steps", steps, "--step_s", "0.05"]
    command += ["--rates", "4", "20", "--seconds", seconds]
    found: Reply = {"sessions": [], "rates": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                part = json.loads(line)
                if "part" in part:
                    found[part["part"]].append(part["found"])
                else:
                    found |= part
                keep(found)
    return found if process.returncode == 0 else found | {"error": f"it ended with {process.returncode}"}


# -- generation -------------------------------------------------------------------------------------------------------


def generation(work: Path, is_dry: bool, keep: Keep) -> Reply:
    """Time the continuation of the same prompts. Weights are random, so no text ends before its last token."""
    found: Reply = {"data": questions(work)[2]}
    for name in (LARGE, SMALL):
        found[name] = {}
        subject = loaded(work, model_name(name, work, is_dry), train=8, test=8 if is_dry else 64)
        continuations(subject, found[name], lambda: keep(found))
        device = subject.device
        del subject
        freed(device)
    return found


def continuations(subject: Subject, found: Reply, keep: Callable[[], None]) -> None:
    """Fill in each way of continuing the prompts."""
    device, prompts = subject.device, [example.prompt for example in subject.test]
    model = peers.adapted(subject.base).to(device).eval()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    copies = copied_bytes_per_s(device)
    found |= {"prompts": len(prompts), "weights_bytes": size, "copies_tb_per_s": round(copies / 1e12, 3)}
    texts: dict[str, Any] = {}
    sizes = sorted({8, 32, len(prompts)} & set(range(len(prompts) + 1)), reverse=True)
    for way in (sizes[0], "graphed", "plain", "recorded", *sizes[1:]):  # generate's best is probably the largest
        try:
            if isinstance(way, int):
                found[f"generate {way}"] = timed = timed_generate(model, prompts, way)
            else:
                timed, texts[way] = timed_continuation(model, subject.tokenizer, prompts, way, device)
                found[way] = timed
                timed["of_reading_weights"] = round(timed["step_s"] * READS_BYTES_PER_S / size, 3)
                timed["of_copying_weights"] = round(timed["step_s"] * copies / size, 3)
        except Exception as error:
            found[str(way)] = timed = {"error": f"{type(error).__name__}: {error}"[:2000]}
        best = max((found[key]["samples_per_s"] for key in found if key.startswith("generate ")), default=None)
        for form in texts if best else ():
            found[form]["of_generate"] = round(found[form]["samples_per_s"] / best, 2)
        print(way, timed, flush=True)
        keep()
    plain = texts.pop("plain", None)
    for form, written in texts.items() if plain else ():  # in bf16 many tokens nearly tie
        found[form]["texts_that_differ"] = sum(one != other for one, other in zip(plain, written, strict=True))
        keep()


# -- the largest batch ------------------------------------------------------------------------------------------------


def search(work: Path, is_dry: bool, keep: Keep) -> Reply:
    """Search for one rank, and then for another, in `shared`, as a sweep does before it runs the trials.

    Each sweep is stopped when its search has ended. The second one begins with what the first one has prepared.
    """
    limit: Reply = {"run__memory_limit_bytes": 1_500_000_000} if is_dry else {}
    options = settings_of(
        training__batch_size="max",
        training__max_steps=1,
        training__compile="auto",
        task__train_examples=24 if is_dry else 4096,
        task__test_examples=2,
        inference__max_new_tokens=2,
        meters__energy="none",  # or the idle device and its counter would be measured first, for 12 s
        **limit,
    )
    found: Reply = {"data": questions(work)[2]}
    model, earlier = model_name(LARGE, work, is_dry), set[str]()
    for rank in SEARCHED_RANKS:
        folder = work / f"search-{rank}"
        if rank != SEARCHED_RANKS[0]:
            shutil.copytree(work / f"search-{SEARCHED_RANKS[0]}" / ".howlow", folder / ".howlow")
        command = sweep_command(work, folder, model, "--ranks", str(rank), "--layout", "shared", *options)
        began_s = time.monotonic()
        with subprocess.Popen(command, stdout=sys.stderr) as process:
            while process.poll() is None and f"rank {rank}" not in found:
                time.sleep(_LOOKS_EVERY_S)
                found |= looked_at(folder / ".howlow", rank, earlier)
                if found.get("under_way") and f"first probe of rank {rank} after_s" not in found:
                    found[f"first probe of rank {rank} after_s"] = round(time.monotonic() - began_s, 1)
                keep(found)
            stop(process)
        found |= looked_at(folder / ".howlow", rank, earlier)
        keep(found)
        if f"rank {rank}" not in found:
            return found | {"error": f"the search for rank {rank} has no result; the log says why"}
        earlier |= {path.name for path in (folder / ".howlow").glob("batch-*.json")}
    return found


def looked_at(cache: Path, rank: int, earlier: set[str]) -> Reply:
    """The search in a run directory, if it has ended, else its probes so far."""
    for path in cache.glob("batch-*.json"):
        if path.name not in earlier:
            ended = json.loads(path.read_text())["search"]
            total_s = sum(value or 0 for value in (ended.get("duration_s") or {}).values())
            return {f"rank {rank}": {"total_s": round(total_s, 1), **ended}, "under_way": None}
    for path in cache.glob("probes-*.json"):
        with suppress(FileNotFoundError):  # the search has just ended
            left = json.loads(path.read_text())
            return {"under_way": {"rank": rank, "effort": left.get("effort"), "probes": left["probes"]}}
    return {}


def stop(process: subprocess.Popen[bytes], patience_s: float = 20.0) -> None:
    """End a sweep: it may take back what runs, and is killed if that takes long."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()


def sweep_command(work: Path, out: Path, model: str, *options: str) -> list[str]:
    """`howlow sweep` with random weights on the questions."""
    train, test, _ = questions(work)
    command = [sys.executable, "-m", "howlow", "sweep", "--model", model, "--task", "question_answering"]
    command += ["--train", train, "--test", test, "--baselines", "none", "--set", "random_weights=true"]
    return [*command, *settings_of(**tokenizer_setting()), "--out", str(out), *options]


def settings_of(**values: Any) -> list[str]:
    """Write settings as `--set` arguments; two underscores stand for a dot."""
    return [
        part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]


CHECKS = {
    "machine": machine,
    "engine-1b": engine_small,
    "engine-8b": engine_large,
    "generation": generation,
    "tests": tests,
    "ranks": ranks,
    "search": search,
    "study": study,
    "meters": meters,
}
