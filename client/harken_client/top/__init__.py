"""`harken top`: what servers do now, from their /metrics."""
