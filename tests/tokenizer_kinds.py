"""Small tokenizers of every kind that models come with, made by hand: what a token is needs no training.

Each knows the words below in their own way, everything else character by character or byte by byte.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("Answer", "Paris", "York", "New", "Why", "the", "ab", "\n\n")
LETTERS = tuple(sorted(set("".join(WORDS)) | set("abcxyz?.:\n")))
DROPPED = "\x01"
"""The character that the Unigram tokenizers drop."""


def merged(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens and merges by which BPE makes each word one token, from left to right."""
    merges = {(word[:end], word[end]): None for word in words for end in range(1, len(word))}
    return list(dict.fromkeys([*("".join(words)), *("".join(pair) for pair in merges)])), list(merges)


def numbered(*tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def framed(tokenizer: Tokenizer, frame: str) -> Tokenizer:
    """The tokenizer with special tokens around every text, such as "<s> $A </s>"."""
    names = [name for name in frame.split() if name != "$A"]
    known = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)]
    added = processors.TemplateProcessing(single=frame, special_tokens=known)
    before = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([before, added]) if before else added
    return tokenizer


def byte_level(trim_offsets: bool = True) -> Tokenizer:
    """GPT-2's kind: bytes, and a space belongs to the word after it."""
    words = [word.replace("\n", "Ċ") for word in WORDS]
    tokens, merges = merged([*words, *(f"Ġ{word}" for word in words)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(numbered("<s>", "</s>", *alphabet, *tokens), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def across_characters(normalizer: Any = None, trim_offsets: bool = True) -> Tokenizer:
    """Byte level with tokens that begin within one character and end within the next, as trained merges have them."""
    spelled = [
        pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0] for text in ("éß", "漢😀é")
    ]
    merges = [(text[at], text[at + 1]) for text in spelled for at in range(1, len(text) - 1, 2)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = numbered("<s>", "</s>", *alphabet, *("".join(pair) for pair in merges))
    tokenizer = Tokenizer(models.BPE(tokens, list(dict.fromkeys(merges))))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama() -> Tokenizer:
    """Llama 2's kind: a space before every text, words joined across spaces, bytes for what it does not know."""
    tokens, merges = merged([*(f"▁{word}" for word in WORDS), *WORDS, ":\n"])
    bytes_of_text = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = numbered("<unk>", "<s>", "</s>", *bytes_of_text, "▁", *LETTERS, *tokens)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """T5's kind: the likeliest pieces, a space before every text, and control characters are dropped."""
    scored = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    scored += [(letter, -4.0) for letter in LETTERS] + [(f"▁{word}", -2.0) for word in WORDS if word.isalpha()]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(DROPPED, "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """BERT's kind: lower case, no spaces, `##` within a word, [CLS] before and [SEP] behind."""
    whole = [*(word.lower() for word in WORDS if word.isalpha()), *(letter.lower() for letter in LETTERS)]
    vocabulary = numbered("[UNK]", "[CLS]", "[SEP]", *whole, *(f"##{letter.lower()}" for letter in LETTERS))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return framed(tokenizer, "[CLS] $A [SEP]")


class WithoutPlaces:
    """A tokenizer that lives in Python: it takes one text and does not say where its tokens stand."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.fast = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool, **options: Any) -> dict[str, list[int]]:
        assert isinstance(text, str)
        assert not any(options.values()), f"a slow tokenizer has no {options}"
        return {"input_ids": self.fast(text, add_special_tokens=add_special_tokens)["input_ids"]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return self.fast.decode(ids, **options)


def _wrapped(tokenizer: Tokenizer, bos: str | None = "<s>", eos: str | None = "</s>") -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


KINDS: dict[str, Callable[[], Any]] = {
    "byte level": lambda: _wrapped(byte_level()),
    "byte level, spans with spaces": lambda: _wrapped(byte_level(trim_offsets=False)),
    "llama": lambda: _wrapped(framed(llama(), "<s> $A")),
    "llama that ends texts": lambda: _wrapped(framed(llama(), "<s> $A </s>")),
    "unigram that ends texts": lambda: _wrapped(framed(unigram(), "$A </s>"), bos=None),
    "wordpiece": lambda: _wrapped(wordpiece(), bos=None, eos="[SEP]"),
    "without BOS": lambda: _wrapped(byte_level(), bos=None),
    "BOS is EOS": lambda: _wrapped(framed(byte_level(), "</s> $A </s>"), bos="</s>"),
    "slow": lambda: WithoutPlaces(_wrapped(framed(byte_level(), "<s> $A"))),
    "slow llama that ends texts": lambda: WithoutPlaces(_wrapped(framed(llama(), "<s> $A </s>"))),
    "slow, BOS is EOS": lambda: WithoutPlaces(_wrapped(framed(unigram(), "</s> $A </s>"), bos="</s>")),
    "slow wordpiece": lambda: WithoutPlaces(_wrapped(wordpiece(), bos=None, eos="[SEP]")),
}
ACROSS: dict[str, Callable[[], Any]] = {
    "fast": lambda: _wrapped(across_characters()),
    "slow": lambda: WithoutPlaces(_wrapped(across_characters())),
}
"""Tokens hold parts of two characters."""
NORMALISING: dict[str, Callable[[], Any]] = {
    name: lambda normalizer=normalizer, trim=trim: _wrapped(across_characters(normalizer, trim))  # type: ignore[misc]
    for name, normalizer, trim in (
        ("NFKC", normalizers.NFKC(), True),
        ("NFKC, spans with spaces", normalizers.NFKC(), False),
        ("NFD", normalizers.NFD(), True),
        ("NFC", normalizers.NFC(), True),
        ("without accents", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), True),
        ("without spaces at the ends", normalizers.Strip(), True),
    )
}
"""Byte level, with a text that is not the one given: characters become several, or one, or none."""
LEADS = {
    "llama": ("<s>",),
    "llama that ends texts": ("<s>",),
    "wordpiece": ("[CLS]",),
    "BOS is EOS": ("</s>",),
    "slow": ("<s>",),
    "slow llama that ends texts": ("<s>",),
    "slow, BOS is EOS": ("</s>",),
    "slow wordpiece": ("[CLS]",),
}
"""What each kind puts before a text; the others put nothing there."""


def without_eos() -> Any:
    return _wrapped(byte_level(), eos=None)
