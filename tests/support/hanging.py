"""A real server whose engine hangs on some token ids, as long as a file is there: not even the runtime can end it."""

import os
from pathlib import Path

HANGS = 997
"""The token id."""

_CUSTOMIZE = f"""
import time
from pathlib import Path
from harken_server.execution import engine

_run = engine.Engine.run

def run(self, batch, outputs, halt=None):
    while (batch.ids == {HANGS}).any() and Path({{file!r}}).exists():
        time.sleep(0.01)
    return _run(self, batch, outputs, halt)

engine.Engine.run = run
"""


def hanging_engine(folder: Path) -> tuple[dict[str, str], Path]:
    """The environment of such a server, and the file whose removal ends every hang. Writes into `folder`.

    Python itself runs a module of the name sitecustomize before anything else.
    """
    file = folder / "hangs"
    file.touch()
    (folder / "sitecustomize.py").write_text(_CUSTOMIZE.format(file=str(file)))
    path = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}, file
