"""Compare our generation with transformers' `generate`, in the same run and on the same prompts.

    python benchmarks/inference.py [--passes N] [--prompts N] [--only generate|evaluate] [--column ...] [--quick]

The model is SmolLM2-135M in fp32 with an attached LoRA adapter (r = 8 on q, k, v, o) whose B is not zero. The prompts
are answerable questions of SQuAD 2.0's development set, in whole paragraphs. Decoding is greedy, with at most 32 new
tokens, and ends at EOS or a new line.

    generate       transformers, left padding. Every token with a new line in it counts as EOS, which is cheaper for it
                   than `stop_strings`. Batches of 8, 16 and 32, in the data's order and sorted by length: the rounds
                   use the best of the six, as measured on the first 32 prompts
    howlow shared, howlow packed     `howlow.engine.generation.generate`, in batches of 8 or 80, as a trial runs it

Texts must be equal. Where they are not, the smallest margin shows whether two tokens tied within floating point. It is
the least difference between the logits of the chosen token and the next best. After that, the loss of the test's
answers is computed (`howlow.engine.evaluation.evaluate`) in the three layouts, 8 examples a batch.

The last line is one JSON document.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import peers
from peers import BATCH_SIZE, INSTALLED, LENGTH, NEW_TOKENS, STOP, WARM, Reply, Spread, ratio, spread, talk

GENERATE = "generate"
VARIANTS = tuple(f"{order} {size}" for order in ("sorted", "unsorted") for size in (32, 16, 8))
OURS = ("howlow shared 8", "howlow shared 80", "howlow packed 80")
TRIED_ON = 32  # prompts on which the peer's variants are compared
LAYOUTS = ("padded", "packed", "shared")


def model_and_tokenizer() -> tuple[Any, Any]:
    """Return the model with an adapter that has an effect: B is normal with a standard deviation of 0.02."""
    import torch

    base, tokenizer = peers.base_model()
    model, generator = peers.adapted(base), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return model.requires_grad_(False).eval(), tokenizer


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# -- transformers -----------------------------------------------------------------------------------------------------


def peer(column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that generates through transformers."""
    import torch

    from howlow.engine import layouts
    from howlow.engine import model as models

    heap = peers.Heap(column, ours=False)
    model, tokenizer = model_and_tokenizer()
    prompts = [example.prompt for example in peers.squad(8, count).test]
    eos = models.stop_tokens(model, tokenizer)
    ends = sorted(eos | {token for token in range(len(tokenizer)) if STOP in tokenizer.decode([token])})
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": ends, "pad_token_id": min(eos)}

    def answer(request: Reply) -> Reply:
        order, size = request["variant"].split()
        numbers = list(range(min(len(prompts), request.get("prompts", len(prompts)))))
        if order == "sorted":
            numbers.sort(key=lambda number: len(prompts[number]))
        plan = batches(numbers, int(size))[: 1 if request["warm_up"] else None]
        written: dict[int, list[int]] = {}
        heap.before(request["warm_up"])
        start_s = time.perf_counter()
        for chosen in plan:
            rows = [prompts[number] for number in chosen]
            ids, mask = layouts.left_padded(rows, max(map(len, rows)), min(eos))
            with torch.inference_mode():
                found = model.generate(input_ids=ids, attention_mask=mask, **options)
            for number, row in zip(chosen, found[:, ids.shape[1] :].tolist(), strict=True):
                written[number] = row
        time_s = time.perf_counter() - start_s
        usage = heap.after(request["warm_up"])
        texts, tokens = {}, 0
        for number, row in written.items():
            length = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
            tokens += length
            kept = [token for token in row[:length] if token not in eos]
            text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts[number] = text.partition(STOP)[0]
        return {"time_s": time_s, "samples": len(written), "tokens": tokens, "texts": texts, **usage}

    return answer


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(name: str, column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that generates as a trial does (`howlow.trial.scoring`)."""
    from howlow.engine import generation
    from howlow.engine import model as models

    heap = peers.Heap(column, ours=True)
    model, tokenizer = model_and_tokenizer()
    _, layout, size = name.split()
    prompts = [example.prompt for example in peers.squad(8, count).test]
    eos = models.stop_tokens(model, tokenizer)

    def answer(request: Reply) -> Reply:
        rows: list[Any] = []
        prefill_s, computed, read_at_s = 0.0, 0, 0.0

        def on_prompts_read(_: int) -> None:
            nonlocal read_at_s
            read_at_s = time.perf_counter()

        heap.before(request["warm_up"])
        start_s = time.perf_counter()
        with heap.running(model) as run:
            for chosen in batches(prompts, int(size))[: 1 if request["warm_up"] else None]:
                begun_s = time.perf_counter()
                found, ran_on = generation.generate(
                    run,
                    tokenizer,
                    chosen,
                    layout=layout,
                    prompt_length=LENGTH - NEW_TOKENS,
                    pad_id=min(eos),
                    max_new_tokens=NEW_TOKENS,
                    stop=STOP,
                    eos=eos,
                    on_prompts_read=on_prompts_read,
                )
                prefill_s += read_at_s - begun_s
                computed += ran_on
                rows += found
        time_s = time.perf_counter() - start_s
        usage = heap.after(request["warm_up"])
        return {
            "time_s": time_s,
            "prefill_s": prefill_s,
            "decode_s": time_s - prefill_s,
            "samples": len(rows),
            "tokens": sum(row.new_tokens for row in rows),
            "computed_tokens": computed,
            **usage,
            "texts": {number: row.text for number, row in enumerate(rows)},
            "margins": {number: row.smallest_margin for number, row in enumerate(rows)},
        }

    return answer


def evaluation(name: str, column: str, count: int) -> Callable[[Reply], Reply]:
    """Make a worker that computes the loss of the answers in one layout."""
    from howlow.engine import layouts
    from howlow.engine.evaluation import evaluate

    heap, layout = peers.Heap(column, ours=True), name.split()[1]
    model, _ = model_and_tokenizer()
    test = peers.squad(8, count).test

    def answer(request: Reply) -> Reply:
        sums: list[float] = []
        computed, targets = 0, 0
        heap.before(request["warm_up"])
        start_s = time.perf_counter()
        with heap.running(model) as run:
            for chosen in batches(test, BATCH_SIZE)[: 1 if request["warm_up"] else None]:
                batch = layouts.lay_out(chosen, layout, LENGTH, 0, "completion")
                sums += evaluate(run, batch)
                computed += batch.computed_tokens
                targets += batch.target_tokens
        time_s = time.perf_counter() - start_s
        usage = heap.after(request["warm_up"])
        return {
            "time_s": time_s,
            "samples": len(sums),
            "computed_tokens": computed,
            "loss": sum(sums) / targets,
            **usage,
        }

    return answer


# -- report -----------------------------------------------------------------------------------------------------------


def generation(column: str, passes: int, count: int, variants: Sequence[str]) -> Reply:
    """Choose the peer's best variant, run the rounds, and print one table."""
    names = (GENERATE, *OURS)
    workers = peers.start(__file__, names, column, "--prompts", str(count), ours=OURS)
    peer_worker, tried = workers[GENERATE], {}
    peer_worker.ask(variant=variants[0], warm_up=True)
    for variant in variants if len(variants) > 1 else ():
        found = peer_worker.ask(variant=variant, prompts=TRIED_ON, warm_up=False)
        tried[variant] = found["samples"] / found["time_s"]
        talk(f"  {GENERATE} {variant}: {tried[variant]:.2f} samples/s")
    best = max(tried, key=tried.__getitem__) if tried else variants[0]
    found = peers.rounds(workers, passes, {"variant": best})
    for worker in workers.values():
        worker.end()
    print(f"\ngeneration, {column}: {count} prompts, {passes} passes; {GENERATE} is at its best in batches {best}")
    return {"column": column, "best": best, "tried": tried, "contenders": _generation_table(names, found)}


def _generation_table(names: Sequence[str], found: dict[str, list[Reply]]) -> Reply:
    rows = [
        ["", "samples/s", "tokens/s", f"x {GENERATE}", "prefill s", "decode s", "peak RSS GiB", "texts that differ"]
    ]
    reference, document = [one["samples"] / one["time_s"] for one in found[GENERATE]], {}
    for name in names:
        runs = found[name]
        rates = [one["samples"] / one["time_s"] for one in runs]
        tokens = spread([one["tokens"] / one["time_s"] for one in runs])
        parts: dict[str, Spread] = {
            key: spread([one[key] for one in runs]) for key in ("prefill_s", "decode_s") if key in runs[0]
        }
        apart = _apart(runs[0], found[GENERATE][0])
        peak, against = max(one["peak_bytes"] for one in runs), ratio(rates, reference)
        seconds = [str(parts[key]) if key in parts else "n/a" for key in ("prefill_s", "decode_s")]
        margins = ", ".join(f"{one['margin']:.1e}" for one in apart if one["margin"] is not None)
        said = "reference" if name == GENERATE else f"{len(apart)}{f' (margins {margins})' if margins else ''}"
        rows.append([name, str(spread(rates)), str(tokens), str(against), *seconds, f"{peak / 2**30:.2f}", said])
        document[name] = {
            "samples_per_s": spread(rates).document(),
            "tokens_per_s": tokens.document(),
            "ratio_to_generate": against.document(),
            **{key: value.document() for key, value in parts.items()},
            "peak_rss_bytes": peak,
            "texts_that_differ": apart,
            "passes": [{key: one[key] for key in one if key not in ("texts", "margins")} for one in runs],
        }
    peers.table(rows)
    return document


def _apart(run: Reply, reference: Reply) -> list[Reply]:
    """List the prompts whose text differs from the reference's, with the smallest margin."""
    return [
        {"prompt": number, "ours": text, "theirs": reference["texts"][number], "margin": run["margins"][number]}
        for number, text in run["texts"].items()
        if text != reference["texts"][number]
    ]


def evaluations(column: str, passes: int, count: int) -> Reply:
    """Compute the loss of the answers in the three layouts, and print one table."""
    names = tuple(f"evaluate {layout}" for layout in LAYOUTS)
    workers = peers.start(__file__, names, column, "--prompts", str(count), ours=names)
    found = peers.rounds(workers, passes, {})
    for worker in workers.values():
        worker.end()
    reference, document = [one["samples"] / one["time_s"] for one in found[names[0]]], {}
    rows = [["", "samples/s", f"x {LAYOUTS[0]}", "computed tokens", "peak RSS GiB", "loss"]]
    for name, runs in found.items():
        rates = [one["samples"] / one["time_s"] for one in runs]
        against, peak = ratio(rates, reference), max(one["peak_bytes"] for one in runs)
        tokens, loss = str(runs[0]["computed_tokens"]), f"{runs[0]['loss']:.6f}"
        rows.append([name, str(spread(rates)), str(against), tokens, f"{peak / 2**30:.2f}", loss])
        document[name] = {
            "samples_per_s": spread(rates).document(),
            "ratio_to_padded": against.document(),
            "peak_rss_bytes": peak,
            "passes": runs,
        }
    print(f"\nevaluation of the loss, {count} examples, {passes} passes")
    peers.table(rows)
    return document


# -- entries ----------------------------------------------------------------------------------------------------------


def work(name: str, column: str, count: int) -> None:
    """Run as a worker process."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    if name == GENERATE:
        peers.serve(peer(column, count))
    else:
        peers.serve((evaluation if name.startswith("evaluate") else ours)(name, column, count))


def main() -> None:
    parser = peers.parser(__doc__)
    parser.add_argument("--prompts", type=int, default=80, help="prompts a pass")
    parser.add_argument("--only", choices=["generate", "evaluate"], help="only this part")
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, asked.column, asked.prompts)
        return
    passes, count = (1, min(8, asked.prompts)) if asked.quick else (asked.passes, asked.prompts)
    start_s, document = time.perf_counter(), {"benchmark": "inference", "machine": peers.machine(), "generation": []}
    variants: Sequence[str] = (f"sorted {BATCH_SIZE}",) if asked.quick else VARIANTS
    for column in (WARM, INSTALLED):
        if asked.only != "evaluate" and asked.column in (None, column):
            talk(f"generation, {column}")
            runs = passes if column == WARM else max(1, passes - 1)
            document["generation"].append(generation(column, runs, count, variants))
            variants = (document["generation"][-1]["best"],)
    if asked.only != "generate":
        document["evaluation"] = evaluations(WARM, passes, count)
    document["wall_s"] = round(time.perf_counter() - start_s, 1)
    print(json.dumps(document))


if __name__ == "__main__":
    sys.exit(main())
