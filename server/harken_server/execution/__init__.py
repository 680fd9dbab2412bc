"""The thin shell around the core: the batcher, the lanes, padding, and the engine."""

import os

# Else onnxruntime, at its import, writes an identifier of the machine below ~/.cache and reports its sessions to its
# maker over HTTPS. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
