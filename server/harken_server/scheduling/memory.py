"""What a batch needs in memory, and how much any batch may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak bytes of a batch beside the weights: m1 B L + m2 B L^2.

    The linear term is the activations of one layer (queries, keys, values, context, feed-forward), the
    quadratic one the scores and their softmax. Layers reuse each other's memory, so depth does not count.
    """

    bytes_per_token: int
    bytes_per_token_squared: int

    @classmethod
    def of_encoder(cls, hidden: int, intermediate: int, heads: int, bytes_per_value: int) -> "MemoryModel":
        """From the encoder's dimensions and the width of a value in bytes."""
        return cls(
            bytes_per_token=bytes_per_value * (8 * hidden + 3 * intermediate),
            bytes_per_token_squared=bytes_per_value * 3 * heads,
        )

    def batch_bytes(self, batch: int, padded_length: int) -> int:
        """Predicted peak bytes for `batch` rows of `padded_length` tokens."""
        tokens = batch * padded_length
        return tokens * self.bytes_per_token + tokens * padded_length * self.bytes_per_token_squared
