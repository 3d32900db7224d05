"""The sizes of a sweep's adapters and of its training data, as the preparation found them."""

from pydantic import Field

from howlow.records.warnings import Frozen


class AdapterSize(Frozen):
    """The trainable parameters of the adapters of one rank."""

    rank: int
    target_modules: tuple[str, ...]
    parameters: int


class Sizes(Frozen):
    """The adapters that train on the same data."""

    completion_tokens: int = Field(description="tokens of the training examples' completions, each example once")
    adapters: tuple[AdapterSize, ...]
