"""Files that are read again when they change: certificates and keys, which others renew while the server runs."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

import structlog

log = structlog.get_logger()

_EVERY_S: Final = 1.0

Contents = Mapping[str, bytes]
"""Of files, by the settings that name them."""


class BadFile(Exception):
    """A file that cannot be used. One line that names the setting and the file, and nothing that stands in it."""


def read(paths: Mapping[str, str]) -> Contents:
    """What the files hold. Raises BadFile."""
    contents = {}
    for setting, path in paths.items():
        try:
            contents[setting] = Path(path).read_bytes()
        except OSError as error:
            raise BadFile(f"{setting}: cannot read {path}: {error.strerror or error}") from None
    return contents


async def follow(paths: Mapping[str, str], held: Contents, use: Callable[[Contents], None]) -> NoReturn:
    """Call `use` with what the files hold whenever that is not what they held before, at first `held`.

    It compares what they hold, once a second: volumes of Kubernetes change by a symbolic link, and those of a network
    tell nobody. What cannot be read, or what `use` refuses with BadFile, is logged once.
    """
    told = ""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            contents = await asyncio.to_thread(read, paths)
            if contents == held:
                told = ""
                continue
            held = contents
            use(contents)
            told = ""
            log.info("files read again", settings=sorted(paths))
        except BadFile as error:
            if str(error) != told:
                log.error("files changed and cannot be used; what they held before is in use", why=str(error))
            told = str(error)
