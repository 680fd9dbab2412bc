"""The blocking client: the asynchronous one, from any thread."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harken_client
import numpy as np
import pytest
from client.fake_server import BAD, FakeEncoder, vector
from harken_client import Cancelled, Client, InvalidInput


def test_all_calls_of_the_asynchronous_client_are_there(target: str) -> None:
    with Client(target) as client:
        client.wait_ready(10)
        assert client.health() == "SERVING"
        assert next(iter(client.watch_health())) == "SERVING"
        assert [info.name for info in client.models()] == ["tiny"]
        assert client.explain_batches() == []
        assert [match.index for match in client.similarity("a", ["b", "c"])] == [1]
        assert client.model().hidden_size == 8
        np.testing.assert_array_equal(client.encode(["a", "b"]), [vector("a"), vector("b")])
        assert [array.shape for array in client.encode(["a"], output="tokens")] == [(3, 8)]
        assert [encoding.tokens for encoding in client.encode_detailed(["a b"])] == [4]
        assert [result.id for result in client.encode_stream([("x", "a")])] == ["x"]


def test_errors_come_as_from_the_asynchronous_client(fake: FakeEncoder, target: str) -> None:
    fake.refuse_texts = {"b": BAD}
    with Client(target) as client, pytest.raises(InvalidInput) as caught:
        client.encode(["a", "b"])
    assert caught.value.index == 1


def test_threads_share_one_client(target: str) -> None:
    def encode(thread: int) -> bool:
        mine = [f"{thread} {i}" for i in range(20)]
        return all(np.array_equal(client.encode([text])[0], vector(text)) for text in mine)

    with Client(target) as client, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(encode, range(8))) == [True] * 8


def test_a_stream_reads_its_source_no_further_than_it_must(target: str) -> None:
    given = 0

    def source() -> Iterator[str]:
        nonlocal given
        for i in range(100_000):
            given += 1
            yield f"text {i}"

    with Client(target) as client:
        stream = client.encode_stream(source())
        first = [next(stream) for _ in range(10)]
        assert given <= 10 + 256 + 64 + 2
        stream.close()  # type: ignore[attr-defined]  # an Iterator to its user, a generator to leave early
    assert [result.index for result in first] == list(range(10))


def test_a_source_may_itself_call_the_client(target: str) -> None:
    with Client(target) as client:

        def source() -> Iterator[list[int]]:
            for text in ("a", "b"):
                yield [int(x) for x in client.encode([text])[0]]

        results = list(client.encode_stream(source()))
    expected = [vector(tuple(int(x) for x in vector(text))) for text in ("a", "b")]
    np.testing.assert_array_equal([result.vector for result in results], expected)


def test_a_closed_client_says_so(target: str) -> None:
    client = Client(target)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.encode(["a"])
    with pytest.raises(RuntimeError, match="closed"):
        next(client.encode_stream(["a"]))


def test_closing_ends_the_calls_of_other_threads(fake: FakeEncoder, target: str) -> None:
    fake.delay_s = 30
    client = Client(target)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            client.encode(["a"])
        except Cancelled as error:
            failures.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    while not fake.calls:
        pass
    client.close()
    caller.join(10)
    assert [str(error) for error in failures] == ["CANCELLED: the client was closed during the call"]


def test_closing_ends_a_stream_that_was_left_half_read(target: str) -> None:
    client = Client(target)
    stream = client.encode_stream(f"text {i}" for i in range(1000))
    assert next(stream).index == 0
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_a_half_read_stream_may_be_collected_in_the_clients_own_thread(target: str) -> None:
    client = Client(target)
    held = [client.encode_stream(f"text {i}" for i in range(1000))]
    assert next(held[0]).index == 0
    client._loop.call_soon_threadsafe(held.clear)
    statuses: list[str] = []
    # A daemon: where the loop waits for itself, nothing can end this call.
    caller = threading.Thread(target=lambda: statuses.append(client.health(timeout_s=5)), daemon=True)
    caller.start()
    caller.join(10)
    assert statuses == ["SERVING"]
    client.close()


def test_a_client_made_before_a_fork_refuses_in_the_child() -> None:
    program = """
import os
from harken_client import Client
client = Client("127.0.0.1:1")
child = os.fork()
if child == 0:
    try:
        client.models()
    except RuntimeError as error:
        os._exit(0 if "before a fork" in str(error) else 3)
    os._exit(4)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
client.close()
raise SystemExit(code)
"""
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)
    assert finished.returncode == 0


def test_the_library_imports_only_what_its_extra_installs() -> None:
    program = """
import sys
class OnlyTheExtra:
    allowed = {"harken", "harken_client", "grpc", "grpc_status", "google", "numpy", "typing_extensions"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not in the extra", name=name)
sys.meta_path.insert(0, OnlyTheExtra())
import harken_client
print([name for name in ("typer", "rich", "harken_client.cli", "harken_client.load") if name in sys.modules])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("[]\n", "", 0)


def test_everything_public_is_named() -> None:
    assert [name for name in harken_client.__all__ if not hasattr(harken_client, name)] == []
    assert (Path(harken_client.__file__).parent / "py.typed").exists()


def test_a_client_is_closed_in_silence_over_a_stream_that_was_left_half_read(target: str) -> None:
    code = f"""
from harken_client import Client
client = Client({target!r})
results = client.encode_stream(str(number) for number in range(1000))
print(next(results).index)
client.close()
"""
    left = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout, left.stderr) == (0, "0\n", "")


def test_ctrl_c_in_a_stream_is_itself_and_the_client_works_on(fake: FakeEncoder, target: str) -> None:
    fake.pace_s = 0.05
    code = f"""
import os, signal, threading
from harken_client import Client
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
with Client({target!r}) as client:
    for attempt in range(3):
        results = client.encode_stream(str(number) for number in range(1000))
        next(results)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            for result in results:
                pass
        except KeyboardInterrupt:
            print("interrupted")
    print(client.encode(["after"]).shape)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.stdout.splitlines(), ended.stderr) == (["interrupted"] * 3 + ["(1, 8)"], "")


def test_streams_that_the_collector_finds_in_the_clients_own_thread_leave_nothing_on_stderr(
    fake: FakeEncoder, target: str
) -> None:
    fake.refuse_texts["bad"] = BAD
    code = f"""
import gc
from harken_client import Client, HarkenError
from harken_client.sentence_encoder import SentenceEncoder
gc.disable()
with Client({target!r}) as client:
    for _ in range(5):
        try:
            SentenceEncoder(client).encode(["a"] * 50 + ["bad"] + ["a"] * 300)
        except HarkenError:
            print("refused")
    client._loop.call_soon_threadsafe(gc.collect)
    for _ in range(3):
        client.encode(["after"])
    gc.collect()
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("refused\n" * 5 + "done\n", "")
