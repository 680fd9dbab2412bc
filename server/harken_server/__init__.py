"""The harken server: variable-length requests in, length-aware batches through ONNX Runtime, embeddings out.

`app` composes the rooms; `rpc` translates; `service` is the one door; `scheduling` decides, purely;
`execution` runs; `models` reads bundles; `telemetry` measures; `settings` holds every setting.
"""
