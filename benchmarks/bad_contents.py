"""What bad inputs hold: the contents of `bad_cases.py`, by the kind of file or flag."""

import bz2
import gzip
import json
import lzma
import struct
from collections.abc import Mapping
from typing import Any

from valid_inputs import CHAT_TEMPLATE, squad

Content = str | bytes


def rows(*lines: Mapping[str, Any]) -> str:
    """JSONL."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def question(**changes: Any) -> dict[str, Any]:
    """A SQuAD document with one question changed; None leaves a field out."""
    found = squad()
    qas = found["data"][0]["paragraphs"][0]["qas"]
    qas[0] = {key: value for key, value in (qas[0] | changes).items() if value is not None}
    return found


def paragraph(**changes: Any) -> dict[str, Any]:
    """A SQuAD document with its paragraph changed; None leaves a field out."""
    found = squad()
    held = found["data"][0]["paragraphs"]
    held[0] = {key: value for key, value in (held[0] | changes).items() if value is not None}
    return found


# -- rows -----------------------------------------------------------------------------------------------------------

ROW = {"prompt": "p", "completion": "c"}
JSONL: dict[str, Content] = {
    "empty": "",
    "blank lines only": "\n \n\t\n",
    "no JSON": "prompt: p\n",
    "a line that ends early": rows(ROW) + '{"prompt": "p"',
    "a number a line": "1\n2\n",
    "a list a line": "[1]\n",
    "null": "null\n",
    "pretty-printed object": json.dumps(ROW, indent=1),
    "pretty-printed array": json.dumps([ROW], indent=1),
    "array on one line": json.dumps([ROW]),
    "single quotes": "{'prompt': 'p', 'completion': 'c'}\n",
    "trailing comma": '{"prompt": "p", "completion": "c",}\n',
    "two objects on a line": rows(ROW)[:-1] * 2,
    "no completion": rows({"prompt": "p"}),
    "another name": rows({"instruction": "p", "output": "c"}),
    "completion is null": rows(ROW | {"completion": None}),
    "completion is a number": rows(ROW | {"completion": 4}),
    "completion is a list": rows(ROW | {"completion": ["c"]}),
    "completion is blank": rows(ROW | {"completion": " \n"}),
    "prompt is an object": rows(ROW | {"prompt": {"text": "p"}}),
    "key given twice": '{"prompt": "p", "prompt": "q", "completion": "c"}\n',
    "id given twice": rows(ROW | {"id": "a"}, ROW | {"id": "a"}),
    "id 7 and id '7'": rows(ROW | {"id": 7}, ROW | {"id": "7"}),
    "id is a fraction": rows(ROW | {"id": 1.5}),
    "id is true": rows(ROW | {"id": True}),
    "id is a list": rows(ROW | {"id": []}),
    "half a surrogate pair": '{"prompt": "\\ud83d", "completion": "c"}\n',
    "half a surrogate pair in the id": '{"prompt": "p", "completion": "c", "id": "\\udc00"}\n',
    "NaN": '{"prompt": NaN, "completion": "c"}\n',
    "a number of 5,000 digits": f'{{"prompt": {"1" * 5000}, "completion": "c"}}\n',
    "nested 100,000 deep": '{"prompt": ' + "[" * 100_000,
    "Latin-1": rows(ROW).encode() + b'{"prompt": "caf\xe9", "completion": "c"}\n',
    "UTF-16": rows(ROW).encode("utf-16"),
    "UTF-32": rows(ROW).encode("utf-32"),
    "UTF-16 without a mark": rows(ROW).encode("utf-16-le"),
    "a NUL": b"\0" * 40,
    "control character": '{"prompt": "a\x01", "completion": "c"}\n',
    "longer than the sequence": rows(ROW | {"completion": "x" * 4000}),
    "HTML": "<!DOCTYPE html><html><body>404</body></html>",
    "Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "half a gzip file": gzip.compress(rows(ROW).encode())[:20],
    "gzip magic alone": b"\x1f\x8b",
    "half a bzip2 file": bz2.compress(rows(ROW).encode())[:30],
    "half an xz file": lzma.compress(rows(ROW).encode())[:40],
    "gzip of nothing": gzip.compress(b""),
    "gzip of gzip": gzip.compress(gzip.compress(rows(ROW).encode())),
    "gzip of Parquet": gzip.compress(b"PAR1\xff\xff"),
    "gzip of Latin-1": gzip.compress("café".encode("latin-1")),
    "zip": b"PK\x03\x04\x14\0\0\0\x08\0\xff\xff",
    "zstd": b"\x28\xb5\x2f\xfd\x24\x00\x01\0\0",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94.",
}
CSV: dict[str, Content] = {
    "header only": "prompt,completion\n",
    "no header": "2+2=,4\n",
    "semicolons": "prompt;completion\np;c\n",
    "column given twice": "prompt,prompt,completion\n1,2,3\n",
    "a column too few": "prompt,completion\np\n",
    "a column too many": "prompt,completion\np,c,d\n",
    "open quote": 'prompt,completion\np,"c\n',
    "text after a quote": 'prompt,completion\np,"c"d\n',
    "NUL": "prompt,completion\np,c\0\n",
    "empty completion": "prompt,completion\np,\n",
    "Latin-1": "prompt,completion\np,café\n".encode("latin-1"),
    "UTF-16": "prompt,completion\np,c\n".encode("utf-16"),
    "JSONL by the name of CSV": rows(ROW),
    "empty": "",
}
TABLES: dict[str, Content] = {
    "text.parquet": "prompt,completion\n",
    "magic.parquet": b"PAR1",
    "zeros.parquet": b"PAR1" + b"\0" * 64 + b"PAR1",
    "empty.parquet": b"",
    "magic.arrow": b"ARROW1\0\0",
    "stream.arrow": b"\xff\xff\xff\xff\x10\0\0\0" + b"\0" * 16,
    "text.arrow": "prompt\n",
    "twice.parquet.gz": gzip.compress(b"PAR1PAR1"),
    "huge-metadata.arrow": b"\xff\xff\xff\xff\xff\xff\xff\x7f",
}
SQUAD: dict[str, Any] = {
    "a list": [],
    "no data": {},
    "data is an object": {"data": {}},
    "data is empty": {"data": []},
    "an article is a number": {"data": [3]},
    "an article without paragraphs": {"data": [{}]},
    "paragraphs is null": {"data": [{"paragraphs": None}]},
    "a paragraph is a string": {"data": [{"paragraphs": ["x"]}]},
    "context is missing": paragraph(context=None),
    "context is a list": paragraph(context=["x"]),
    "qas is missing": paragraph(qas=None),
    "qas is an object": paragraph(qas={}),
    "no question at all": paragraph(qas=[]),
    "id is missing": question(id=None),
    "id is a number": question(id=7),
    "id given twice": question(id="a1"),
    "question is missing": question(question=None),
    "question is a number": question(question=1),
    "answers is missing": question(answers=None),
    "answers is an object": question(answers={"text": ["2"]}),
    "an answer is a string": question(answers=["2"]),
    "an answer without text": question(answers=[{}]),
    "an answer is a number": question(answers=[{"text": 2}]),
    "an answer is blank": question(answers=[{"text": " "}]),
    "an answer is half a surrogate pair": question(answers=[{"text": "\ud83d"}]),
    "is_impossible is a string": question(is_impossible="false"),
    "impossible with an answer": question(is_impossible=True),
    "version 1.1 without an answer": question(answers=[]) | {"version": "1.1"},
    "a list of questions": squad()["data"][0]["paragraphs"][0]["qas"],
}
PREDICTIONS: dict[str, Content] = {
    "empty": "",
    "a list": "[]",
    "a string": '"b0"',
    "null": "null",
    "a prediction is a number": '{"b0": 2}',
    "a prediction is null": '{"b0": null}',
    "a prediction is a list": '{"b0": ["2"]}',
    "an id given twice": '{"b0": "2", "b0": "3"}',
    "half a surrogate pair": '{"b0": "\\ud83d"}',
    "it ends in the middle": '{"b0": "2"',
    "JSONL": '{"id": "b0", "prediction": "2"}\n{"id": "b1", "prediction": "2"}\n',
    "Latin-1": b'{"b0": "\xe9"}',
    "nested too deeply": "[" * 100_000,
}
TEXT: dict[str, Content] = {
    "empty.txt": "",
    "blank.txt": " \n\n\t",
    "latin.txt": "café".encode("latin-1"),
    "nul.txt": "a\0b",
    "utf16.txt": "text".encode("utf-16"),
    "binary.txt": bytes(range(256)),
    "damaged.txt.gz": b"\x1f\x8b\x08\0",
    "no-text.jsonl": '{"body": "x"}\n',
    "text-is-a-list.jsonl": '{"text": ["x"]}\n',
    "no-text.csv": "body\nx\n",
    "blank-rows.jsonl": '{"text": ""}\n{"text": " "}\n',
}


# -- settings and flags -----------------------------------------------------------------------------------------------

TOML: dict[str, Content] = {
    "not TOML": "model: x\n",
    "half a table": "[task\n",
    "key given twice": 'model = "a"\nmodel = "b"\n',
    "table given twice": '[task]\nname = "completion"\n[task]\n',
    "Latin-1": b'model = "caf\xe9"\n',
    "UTF-16": 'model = "x"\n'.encode("utf-16"),
    "NUL": "model = \0\n",
    "unknown setting": "modell = 1\n",
    "unknown table": "[tasks]\nname = 1\n",
    "unknown setting in a table": "[lora]\nrang = 8\n",
    "a table is a number": "task = 3\n",
    "a setting is a table": "[model]\nname = 1\n",
    "nested too deeply": "seed = " + "[" * 20_000,
    "a number of 5,000 digits": f"seed = {'1' * 5000}\n",
    "a seed of 2^70": f"seed = {2**70}\n",
    "a date": "seed = 2024-01-01\n",
    "nan": "[training]\nlearning_rate = nan\n",
    "inf": "[training]\nlearning_rate = inf\n",
    "negative rank": "[lora]\nrank = -1\n",
    "rank is a string": '[lora]\nrank = "8"\n',
    "rank is true": "[lora]\nrank = true\n",
    "rank is a fraction": "[lora]\nrank = 8.5\n",
    "empty list of modules": "[lora]\ntarget_modules = []\n",
    "modules are numbers": "[lora]\ntarget_modules = [1]\n",
    "alpha of nothing": '[lora]\nalpha = "r"\n',
    "three betas": "[training]\nbetas = [0.9, 0.99, 0.999]\n",
    "unknown layout": '[training]\nlayout = "ragged"\n',
    "shared with dropout": '[lora]\ndropout = 0.1\n[training]\nlayout = "shared"\n',
    "dropout of 1": "[lora]\ndropout = 1.0\n",
    "grid is a list": "grid = [1]\n",
    "grid of an unknown setting": '[grid]\n"lora.rang" = [1]\n',
    "grid without values": '[grid]\n"lora.rank" = []\n',
    "grid with a plain value": '[grid]\n"lora.rank" = 8\n',
    "grid of what is one for a sweep": '[grid]\n"run.device" = ["cpu", "cuda"]\n',
    "grid of a table": '[grid]\n"lora" = [1]\n',
    "grid with a wrong value": '[grid]\n"lora.rank" = [1, "x"]\n',
    "assumed watts without a number": '[meters]\nenergy = "assumed"\n',
    "unknown device": '[run]\ndevice = "tpu"\n',
    "no margin left": "[run]\nmemory_margin = 1.0\n",
    "effective batch below the batch": "[training]\nbatch_size = 8\neffective_batch_size = 4\n",
    "sequence length 0": "[training]\nsequence_length = 0\n",
    "a rank of 30 digits": f"[lora]\nrank = {'9' * 30}\n",
    "a sequence length of 30 digits": f"[training]\nsequence_length = {'9' * 30}\n",
}
FLAGS: dict[str, list[str]] = {
    "--ranks ''": ["--ranks", ""],
    "--ranks 0": ["--ranks", "0"],
    "--ranks -1": ["--ranks", "-1"],
    "--ranks 1,,2": ["--ranks", "1,,2"],
    "--ranks 1.5": ["--ranks", "1.5"],
    "--ranks 1..": ["--ranks", "1.."],
    "--ranks 8..1": ["--ranks", "8..1"],
    "--ranks 3..3": ["--ranks", "3..3"],
    "--ranks 0..8": ["--ranks", "0..8"],
    "--ranks 1..1e6": ["--ranks", "1..1e6"],
    "--ranks 1..9 (5,000 digits)": ["--ranks", f"1..{'9' * 5000}"],
    "--ranks of 5,000 digits": ["--ranks", "9" * 5000],
    "--ranks of 30 digits": ["--ranks", "9" * 30],
    "--ranks x": ["--ranks", "x"],
    "--seeds x": ["--seeds", "x"],
    "--seeds ''": ["--seeds", ""],
    "--seeds -1": ["--seeds", "-1"],
    "--seeds 2^64": ["--seeds", str(2**64)],
    "--batch-size 0": ["--batch-size", "0"],
    "--batch-size many": ["--batch-size", "many"],
    "--batch-size of 5,000 digits": ["--batch-size", "9" * 5000],
    "--layout x": ["--layout", "x"],
    "--baselines x": ["--baselines", "x"],
    "--task x": ["--task", "x"],
    "--task ''": ["--task", ""],
    "--retry x": ["--retry", "x"],
    "--set without =": ["--set", "seed"],
    "--set =1": ["--set", "=1"],
    "--set seed=": ["--set", "seed="],
    "--set seed=x": ["--set", "seed=x"],
    "--set unknown=1": ["--set", "unknown=1"],
    "--set lora.rank.x=1": ["--set", "lora.rank.x=1"],
    "--set with a line break": ["--set", "seed=1\nmodel=2"],
    "--set with an open list": ["--set", "grid.seed=[1"],
    "--set nested too deeply": ["--set", f"seed={'[' * 20_000}"],
    "--set a number of 5,000 digits": ["--set", f"seed={'1' * 5000}"],
    "--set with a byte that is no UTF-8": ["--set", "task.template=\udcff{prompt}"],
    "--set grid=1": ["--set", "grid=1"],
    "--set task=1": ["--set", "task=1"],
    "--set '.=1'": ["--set", ".=1"],
    "--train ''": ["--train", ""],
    "--train with a NUL": ["--train", "a\0b"],
    "--train of 5,000 letters": ["--train", "x" * 5000],
    "--train a missing file": ["--train", "missing.jsonl"],
    "--train a user who is not there": ["--train", "~nobody-of-this-name/x.jsonl"],
    "--train a device": ["--train", "/dev/zero"],
    "--train hub data without a network": ["--train", "owner/name:a:b"],
    "--train a byte that is no UTF-8": ["--train", "caf\udce9.jsonl"],
    "--model ''": ["--model", ""],
    "--model with a NUL": ["--model", "a\0b"],
    "--model of 5,000 letters": ["--model", "x" * 5000],
    "--model a missing folder": ["--model", "./missing"],
    "--model a user who is not there": ["--model", "~nobody-of-this-name/x"],
    "--model without a network": ["--model", "owner/name"],
    "--model a missing GGUF": ["--model", "missing.gguf"],
    "--model an architecture alone": ["--model", "llama-3.1-8b"],
    "--set tokenizer a missing folder": ["--set", "tokenizer=./missing"],
    "--set tokenizer an architecture": ["--set", "tokenizer=llama-3.1-8b"],
    "--set a module that is not there": ["--set", 'lora.target_modules=["q_prj"]'],
    "--set a template without its placeholder": ["--set", "task.template=Q:"],
    "--set a template with its placeholder twice": ["--set", "task.template={prompt}{prompt}"],
    "--set a setting of another task": ["--set", "task.unit=window"],
    "--workers x": ["--workers", "x"],
    "a flag that is not there": ["--rank", "8"],
}


# -- models -----------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, Content] = {
    "empty": "",
    "no JSON": "{model_type: llama}",
    "a list": "[]",
    "null": "null",
    "empty object": "{}",
    "byte order mark": '\ufeff{"model_type": "llama"}',
    "Latin-1": b'{"model_type": "\xe9"}',
    "unknown type": '{"model_type": "transmogrifier"}',
    "type is a number": '{"model_type": 3}',
    "nested too deeply": "[" * 100_000,
    "a number of 5,000 digits": f'{{"model_type": "llama", "hidden_size": {"1" * 5000}}}',
}
CONFIG_CHANGES: dict[str, dict[str, Any]] = {
    "hidden_size is a string": {"hidden_size": "large"},
    "hidden_size is 0": {"hidden_size": 0},
    "hidden_size is negative": {"hidden_size": -16},
    "hidden_size of another model": {"hidden_size": 32},
    "heads do not divide the width": {"num_attention_heads": 3},
    "no heads": {"num_attention_heads": 0},
    "one layer more": {"num_hidden_layers": 2},
    "layers is a list": {"num_hidden_layers": [1]},
    "layers are negative": {"num_hidden_layers": -1},
    "vocabulary of another model": {"vocab_size": 100},
    "vocabulary is null": {"vocab_size": "null"},
    "an unknown activation": {"hidden_act": "swish9"},
    "an unknown position scaling": {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}},
    "own code": {"auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}, "model_type": "mine"},
    "a type that writes no text": {"model_type": "vit"},
    "an encoder and a decoder": {"model_type": "t5"},
    "eos_token_id is a text": {"eos_token_id": "</s>"},
    "eos_token_id is a fraction": {"eos_token_id": 2.5},
    "eos_token_id is a list with a text": {"eos_token_id": [2, "</s>"]},
    "eos_token_id is an object": {"eos_token_id": {"id": 2}},
}
GENERATION_CHANGES: dict[str, Any] = {
    "eos_token_id is a text": {"eos_token_id": "</s>"},
    "eos_token_id is a fraction": {"eos_token_id": 2.5},
    "eos_token_id is a list with a text": {"eos_token_id": [2, "</s>"]},
    "eos_token_id is a list with null": {"eos_token_id": [None]},
    "a list": [],
}
SAFETENSORS: dict[str, Content | None] = {
    "missing": None,
    "empty": b"",
    "header length beyond the file": struct.pack("<Q", 1 << 40),
    "header is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "header is a list": struct.pack("<Q", 2) + b"[]",
    "no tensor": struct.pack("<Q", 2) + b"{}",
    "offsets beyond the file": struct.pack("<Q", 62)
    + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
    "unknown dtype": struct.pack("<Q", 58) + b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}     \0\0\0\0',
    "a pickle by its name": b"\x80\x02}q\x00.",
    "text": "version https://git-lfs.github.com/spec/v1\n",
}
TOKENIZERS: dict[str, Content | None] = {
    "empty": "",
    "no JSON": "{version: 1}",
    "a list": "[]",
    "empty object": "{}",
    "Latin-1": b'{"version": "\xe9"}',
}
TEMPLATES: dict[str, Content] = {
    "does not parse": "{% for message in messages %}",
    "unknown filter": "{{ messages | frobnicate }}",
    "unknown tag": "{% frob %}",
    "raises": "{{ raise_exception('only tools are supported') }}",
    "needs a system turn": "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}",
    "leaves the content out": "<user>",
    "prints the content twice": CHAT_TEMPLATE.replace(
        "{{ message.content }}", "{{ message.content }}{{ message.content }}"
    ),
    "upper case": CHAT_TEMPLATE.replace("message.content", "message.content | upper"),
    "division by zero": "{{ 1 // 0 }}",
    "attribute of what is not there": "{{ messages[7].content.x }}",
    "Latin-1": b"caf\xe9{{ messages }}",
    "a recursion without end": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
}
