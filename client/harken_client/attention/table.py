"""An Attention in a few lines, for a terminal."""

from rich.table import Table
from rich.text import Text

from harken_client.attention.values import Attention


def summary_table(attention: Attention) -> Table:
    """Each token, those that it attends to most in the last chosen layer's mean, and what it adds to a similarity."""
    layer, pair = attention.layers[-1], attention.pair
    table = Table(box=None, pad_edge=False)
    for column in ("token", f"attends to, in layer {layer}"):
        table.add_column(column, no_wrap=True)
    if pair is not None:
        table.add_column(f"adds to {pair.similarity:.4f}", justify="right", no_wrap=True)
    names = attention.tokens or [str(token) for token in attention.ids]
    for index, name in enumerate(names):
        linked = ""
        if attention.links is not None:
            tokens, weights = attention.links.tokens[-1, index], attention.links.weights[-1, index]
            linked = "  ".join(f"{names[token]} {weight:.2f}" for token, weight in zip(tokens, weights, strict=True))
        # As text: a token may look like markup.
        cells = [Text(name), Text(linked)]
        if pair is not None:
            cells.append(Text(f"{pair.contributions[index].sum():.4f}"))
        table.add_row(*cells)
    return table
