"""The harken server: variable-length requests in, length-aware batches through ONNX Runtime, embeddings out.

`app` composes the rooms; `rpc` translates; `service` is the one door (`attend` the one of attention maps); `scheduling`
decides, purely; `execution` runs; `models` reads bundles; `telemetry` measures; `settings` holds every setting.
"""

import os

# NumPy's products of matrices would take all cores, which are the lanes' to share. It is read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
