"""The real scheduling core on a virtual clock: what would happen, without waiting for it."""
