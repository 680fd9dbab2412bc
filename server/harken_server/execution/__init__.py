"""The thin shell around the core: the batcher, the lanes, padding, and the engine."""
