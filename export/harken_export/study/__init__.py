"""What self-attention buys, measured: `python -m harken_export.study` writes docs/attention.md and its plots."""
