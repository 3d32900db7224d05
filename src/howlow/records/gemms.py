"""Which library computes products on a CPU."""

from typing import Literal

from pydantic import Field

from howlow.records.warnings import Frozen


class GemmRecord(Frozen):
    """Which library computes the fp32 products of one kind on a CPU."""

    of: Literal["forward", "backward", "attention"] = Field(
        description="with frozen weights, forward: x W^T, backward: dy W, the gradient of x; attention: Q K^T"
    )
    in_features: int
    out_features: int
    rows: int = Field(description="tokens of the product that was timed")
    library: Literal["onednn", "blas"] = Field(description="blas: the one that torch was built with, such as MKL")
    onednn_gflops: float | None = Field(None, description="GFLOP/s through oneDNN; None: the library was asked for")
    blas_gflops: float | None = Field(None, description="GFLOP/s through BLAS; None: the library was asked for")

    @property
    def product(self) -> str:
        """The product, in one word for each part."""
        return f"{self.of} {self.in_features}x{self.out_features}"
