"""The pure core: who rides with whom, on which lane, and who may enter. No I/O, no clock, no thread."""
