"""Bundles: reading and checking them, their tokenizer, and which versions are served."""
