"""What a sequence's vectors follow from, as a key: equal keys, equal vectors."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from harken_server.models.repository import Model
from harken_server.models.tokenizer import Ids
from harken_server.scheduling.waiting import Tenant

_BYTES: Final = 32


class Keys:
    """Makes keys, if anybody wants them."""

    def __init__(self, shared: bool, kept: bool) -> None:
        """`shared`: among sequences that wait at the same time. `kept`: for those that come later."""
        self.shared: Final = shared
        self._wanted: Final = shared or kept

    def of(
        self, model: Model, tenant: Tenant, outputs: Sequence[str], sequences: Sequence[Ids]
    ) -> Sequence[bytes | None]:
        """A key for each sequence: of the bundle, who asks, what is computed, and its tokens.

        Not across tenants: how soon an answer comes would tell one what another has sent.
        """
        if not self._wanted:
            return [None] * len(sequences)
        common = blake2b("\0".join((model.sha256, tenant.name, *outputs)).encode(), digest_size=_BYTES)
        keys = []
        for ids in sequences:
            key = common.copy()
            key.update(b"\0" + ids.tobytes())
            keys.append(key.digest())
        return keys
