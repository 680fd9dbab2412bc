"""Turns a BERT encoder into a bundle that a harken server loads: PyTorch in, checked ONNX out."""

import os

# Else onnxruntime, at its import, writes an identifier of the machine below ~/.cache and reports its sessions to its
# maker over HTTPS. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
