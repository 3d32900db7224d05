"""What a trial starts from: its examples, what they were read from, and which model it is."""

from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen


class DataSource(Frozen):
    """What the examples of one side were read from."""

    side: Literal["train", "test", "general_text"]
    source: str = Field(description="as the settings name it")
    format: str = Field(description="text, json, jsonl, csv, table, saved data set, folder or hub data")
    files_read: int = Field(description="0: hub data")
    files: tuple[str, ...] = Field(description="their paths in the folder, or the file's name; the first 1,000")
    files_left_out: int = Field(0, description="files and folders in the folder that were not read")
    left_out: tuple[str, ...] = Field((), description="their paths, those of folders with a slash; the first 1,000")


class DataRecord(Frozen):
    """What a trial starts from: the examples, and which model it is.

    The same for every trial that shares model, task, tokenizer and sequence length.
    """

    train_sha256: str = Field(description="of the training examples' token ids, in order")
    test_sha256: str = Field(description="the same of the test examples")
    answers_sha256: str | None = Field(
        None, description="of what else the scores depend on: accepted answers, words and bytes; None in schema 1"
    )
    model_sha256: str | None = Field(None, description="of a local model's config and weights")
    model_commit: str | None = Field(None, description="the commit of a hub model that was loaded")
    start_sha256: str | None = Field(None, description="of the adapter's weights that trials are cut from (lora.start)")
    train_examples: int
    train_groups: int
    test_examples: int
    test_groups: int
    train_tokens: int
    test_tokens: int
    longest_tokens: int = Field(description="of the longest training example")
    overlap_left_out: int = Field(description="training examples left out because their group occurs in the test data")
    dropped: int = Field(description="training examples too long for the sequence length")
    cut: int = Field(description="examples whose text or context was cut")
    cut_in_training: int | None = Field(None, description="of these, training examples; None in older records")
    train_completion_tokens: int | None = Field(
        None, description="tokens of the training examples' completions; None in older records"
    )
    without_tokens: int | None = Field(
        None,
        description="training examples left out because the tokenizer makes no token of their text; None in older "
        "records",
    )
    test_without_tokens: int | None = Field(
        None,
        description="test examples of whose text the tokenizer makes no token; they are kept and have no target but an "
        "answer's end; None in older records",
    )
    sources: tuple[DataSource, ...] = Field((), description="what was read and left out; empty in older records")
    validation_sha256: str | None = Field(
        None, description="of the validation examples' tokens and accepted answers; None: none were set aside"
    )
    validation_examples: int | None = Field(
        None, description="examples set aside from training to choose between settings; None: none"
    )
    general_sha256: str | None = Field(None, description="of the general text's tokens; None: there is no such text")
    general_windows: int | None = Field(None, description="windows of the general text; None: there is no such text")
    general_tokens: int | None = Field(None, description="its tokens with a loss; None: there is no such text")
    references: int | None = Field(
        None,
        description="accepted answers of the test, equal ones of an example once; None: the task has none",
    )
    unmatchable_references: int | None = Field(
        None, description="of these, how many no generation can match as they stand (length, stop text, special tokens)"
    )
