"""Attention maps as `attend` gives them, and how they are drawn."""

from harken_client.attention.values import Attention, Links, Pair

__all__ = ["Attention", "Links", "Pair"]
