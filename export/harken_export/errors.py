"""What an export may refuse. The text of each is one line for the person who asked.

ExportError
    InvalidConfig        sizes that describe no encoder
    CheckpointRefused    weights that are missing, unreadable or of another architecture
    ModelTooLarge        more than one ONNX file can hold
    AttentionTooLarge    the attention graph's float32 weights are, although the model is not
    InvalidBundleName    a name or a version that no bundle may have
    BundleExists         NAME/VERSION is there already
    ParityFailed         the ONNX graph does not compute what the PyTorch module computes
    CertificateFailed    int8 loses more of the model than it may
"""

from pathlib import Path


class ExportError(Exception):
    """The root of them all."""


class InvalidConfig(ExportError):
    pass


class CheckpointRefused(ExportError):
    pass


class InvalidBundleName(ExportError):
    pass


class ModelTooLarge(ExportError):
    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the weights take {size_bytes / 1e9:.2f} GB, one ONNX file holds less than {limit_bytes / 1e9:.2f} GB"
        )
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class AttentionTooLarge(ExportError):
    def __init__(self, cause: ModelTooLarge) -> None:
        super().__init__(f"of the attention graph, which is float32, {cause}: leave it out by --no-attention")


class BundleExists(ExportError):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} exists already: use --force to replace it, or another --version")
        self.folder = folder


class ParityFailed(ExportError):
    """`figure` of parity case `case` is `value`, on the wrong side of `bound`."""

    def __init__(self, case: str, figure: str, value: float, bound: float) -> None:
        super().__init__(f"parity failed in case '{case}': {figure} is {value:.3g}, the bound is {bound:g}")
        self.case, self.figure, self.value, self.bound = case, figure, value, bound


class CertificateFailed(ExportError):
    """`figure` over the certificate's sentences is `value`, below `bound`."""

    def __init__(self, figure: str, value: float, bound: float) -> None:
        super().__init__(f"certificate failed: {figure} is {value:.6g}, the bound is {bound:g}")
        self.figure, self.value, self.bound = figure, value, bound
