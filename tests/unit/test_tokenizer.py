"""What text becomes, and which tokenizers are refused."""

import base64
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from harken_server.models.bundle import BundleError
from harken_server.models.growth import check_growth
from harken_server.models.tokenizer import Reading, Tokenizer, TooManySequences
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds" / "tokenizer"


@pytest.fixture(scope="module")
def content(minilm_models: Path) -> bytes:
    return (minilm_models / "all-MiniLM-L6-v2" / "1" / "tokenizer.json").read_bytes()


def test_short_text_is_itself_with_its_special_tokens(content: bytes) -> None:
    ((tokens,),) = Tokenizer(content, 512, 30522).encode(["Hello, world"], Reading(), 1)
    assert tokens.ids.tolist() == [101, 7592, 1010, 2088, 102]
    assert (tokens.full_length, tokens.counted_all, tokens.special) == (5, True, 2)


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u200b"])
def test_text_of_nothing_has_special_tokens_only(content: bytes, empty: str) -> None:
    ((tokens,),) = Tokenizer(content, 512, 30522).encode([empty], Reading(), 1)
    assert len(tokens.ids) == tokens.special == 2


def whole_of(content: bytes, text: str) -> Encoding:
    plain = HuggingFaceTokenizer.from_buffer(content)
    plain.no_truncation()
    plain.no_padding()
    return plain.encode(text)


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=60), st.integers(1, 400), st.integers(5, 40), st.booleans())
def test_the_cut_of_a_long_text_changes_no_token_and_no_verdict(
    content: bytes, unit: str, times: int, most: int, end: bool
) -> None:
    text = unit * times
    whole = whole_of(content, text).ids
    reading = Reading("end" if end else "start", places=True)
    ((tokens,),) = Tokenizer(content, most, 30522).encode([text], reading, 10_000)
    assert (tokens.full_length > most) == (len(whole) > most)
    if len(whole) <= most:
        assert tokens.ids.tolist() == whole
    elif end:
        assert tokens.ids.tolist() == [whole[0], *whole[1 - most :]]
    else:
        assert tokens.ids.tolist() == [*whole[: most - 1], whole[-1]]
    if tokens.counted_all:
        assert tokens.full_length == len(whole)
    else:
        assert most < tokens.full_length <= len(whole) + 128


@settings(max_examples=60)
@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs", "So"]), min_size=1, max_size=60),
    st.integers(1, 40), st.integers(5, 20), st.data(),
)  # fmt: skip
def test_chunks_are_the_whole_text_in_order_and_overlap_as_asked(
    content: bytes, unit: str, times: int, most: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, most - 3))
    text = unit * times
    whole = whole_of(content, text)
    reading = Reading("chunks", overlap)
    (chunks,) = Tokenizer(content, most, 30522).encode([text], reading, 10_000)
    first, *body, last = whole.ids
    joined: list[int] = []
    for number, chunk in enumerate(chunks):
        assert (chunk.ids[0], chunk.ids[-1], len(chunk.ids) == chunk.full_length <= most) == (first, last, True)
        own = chunk.ids[1:-1].tolist()
        assert number == len(chunks) - 1 or len(own) == most - 2, "only the last one may be shorter"
        assert number == 0 or joined[len(joined) - overlap :] == own[:overlap]
        joined += own[overlap:] if number else own
        assert chunk.places is not None
        begins = len(joined) - len(own)
        assert chunk.places.tolist() == [[0, 0], *map(list, whole.offsets[1 + begins : 1 + len(joined)]), [0, 0]]
    assert joined == body


def test_chunks_are_counted_over_texts_before_any_is_made(content: bytes) -> None:
    texts, reading = ["a b c d e f", "short", "a b c d"], Reading("chunks", 1)
    tokenizer = Tokenizer(content, 5, 30522)
    assert [len(part) for part in tokenizer.encode(texts, reading, 6)] == [3, 1, 2]
    with pytest.raises(TooManySequences) as error:
        tokenizer.encode(texts, reading, 5)
    assert (error.value.text, error.value.sequences) == (2, 6)
    # One that would make 100,000 chunks, of 8 kB each.
    tokenizer = Tokenizer(content, 512, 30522)
    tracemalloc.start()
    with pytest.raises(TooManySequences):
        tokenizer.encode(["," * 100_000], Reading("chunks", 509), 1024)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_places_count_characters_also_where_a_long_text_lost_its_beginning(content: bytes) -> None:
    text = "caf\u00e9 \U0001f600 " + "word " * 2000 + "the end"
    for reading in (Reading(places=True), Reading("end", places=True)):
        ((tokens,),) = Tokenizer(content, 12, 30522).encode([text], reading, 10_000)
        assert tokens.places is not None
        words = [text[start:end] for start, end in tokens.places[1:-1]]
        assert words == (
            ["word"] * 8 + ["the", "end"] if reading.keep == "end" else ["caf\u00e9", "\U0001f600", *["word"] * 8]
        )


def test_a_file_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(b"{}", 512, 30522)


def word_level(words: dict[str, int], post_processor: Any = None, unknown: str = "a") -> bytes:
    """A tokenizer.json of these words."""
    made = HuggingFaceTokenizer(WordLevel(words, unk_token=unknown))
    made.pre_tokenizer = Whitespace()
    if post_processor is not None:
        made.post_processor = post_processor
    return made.to_str().encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Two ids in all, and one of them is too high.
        (word_level({"a": 0, "b": 1000}), "has the id 1000, but the model knows 0 to 999"),
        (
            word_level({"a": 0}, TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 5000)])),
            "has the id 5000, but the model knows 0 to 999",
        ),
        (word_level({"b": 0}), "Missing .* token from the vocabulary"),
        (
            word_level({"a": 0}, TemplateProcessing(single="a a $A a a", special_tokens=[("a", 0)])),
            "adds 4 tokens, and the model takes 4 in all",
        ),
        ((SEEDS / "panics_when_read").read_bytes(), "range end index 6 out of range"),
    ],
    ids=["id", "special id", "unknown", "no room", "panic"],
)
def test_a_tokenizer_that_cannot_serve_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer(content, 4, 1000)


def changed(**parts: Any) -> bytes:
    """The tokenizer of one of the fuzzers' seeds, with other parts."""
    return json.dumps({**json.loads((SEEDS / "word_piece").read_bytes()), **parts}).encode()


def replacing(what: dict[str, str], by: str, times: int = 1) -> dict[str, Any]:
    """Normalizers, one after another."""
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": what, "content": by}] * times}


A_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
LONG_SENTENCEPIECE = base64.b64encode(b"\x04\0\0\0trie" + b"a" * 19 + b"\0").decode()
SENTENCEPIECE = base64.b64encode(b"\x04\0\0\0triea\0bc\0").decode()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": replacing({"String": "a"}, "a" * 1000, 4)}, "a text 1000000000000 times as long; at most 10"),
        ({"normalizer": replacing({"String": ""}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "x*"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "(?=x)"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "x|y*"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": r"\b"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "^"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "x{0,2}"}, "a" * 50)}, "101 times"),
        ({"normalizer": replacing({"Regex": "x+"}, "a" * 50)}, "50 times"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10}}, "11 times"),
        ({"normalizer": replacing({"String": "ab"}, "a" * 21)}, "11 times"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 2}}, "25 times"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": LONG_SENTENCEPIECE}}, "19 times"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}}, "has 18 normalizers"),
        ({"normalizer": {"pattern": {"String": "a"}, "content": "a" * 1000}}, "is none that .* check: KeyError"),
        ({"normalizer": {"type": "Grow"}}, "'Grow' is not known"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "is not base64"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [A_TEXT] * 9}}, "takes the text 9 times"),
        ({"model": {"vocab": {}, "max_input_chars_per_word": 201}}, "max_input_chars_per_word is 201; at most 200"),
        (
            {"model": {"vocab": {}, "continuing_subword_prefix": "#" * 65}},
            "subword_prefix is 65; at most 64",
        ),
        ({"model": {"vocab": {}, "end_of_word_suffix": "#" * 65}}, "end_of_word_suffix is 65; at most 64"),
        ({"model": {"vocab": {"a" * 1025: 0}}}, "longest token is 1025; at most 1024"),
        ({"model": {"vocab": [["a", 0.0], ["a" * 262_144, -2.0]]}}, "longest token is 262144; at most 1024"),
        ({"added_tokens": [{"content": "a" * 1025}]}, "longest token is 1025; at most 1024"),
        ({"model": {"vocab": {}, "dropout": 0.5}}, "dropout is 0.5: the same text"),
    ],
)
def test_a_tokenizer_that_may_make_a_text_much_longer_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer(changed(**parts), 16, 1000)


def test_other_threads_run_while_a_text_is_tokenised(content: bytes) -> None:
    tokenizer, text = Tokenizer(content, 512, 30522), ("x" * 99 + " ") * 2600
    ticks, ended = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not ended.wait(0.001):
            ticks += 1

    ticking = threading.Thread(target=tick)
    ticking.start()
    tokenizer.encode([text], Reading("chunks"), 1024)
    ended.set()
    ticking.join()
    # Held throughout, the interpreter's lock lets it run twice.
    assert ticks > 20


def test_a_key_that_stands_twice_in_a_tokenizer_is_refused() -> None:
    content = changed(normalizer=None).replace(b'"normalizer": null', b'"normalizer": null, "normalizer": null')
    with pytest.raises(BundleError, match="a key twice"):
        Tokenizer(content, 16, 1000)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replacing({"Regex": " {2,}"}, " "), "pre_tokenizer": {"type": "ByteLevel"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": SENTENCEPIECE}},
        # Of XLM-R, T5, DeBERTa-v3 and ALBERT.
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Precompiled", "precompiled_charsmap": SENTENCEPIECE},
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
                ],
            },
            "pre_tokenizer": {"type": "Metaspace"},
        },
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "\u2581"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                ],
            }
        },
    ],
)
def test_what_tokenizers_commonly_do_is_not_refused(parts: dict[str, Any]) -> None:
    check_growth(changed(**parts))


def test_a_tokenizer_of_more_ids_than_the_model_knows_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="has the id 30521, but the model knows 0 to 30520"):
        Tokenizer(content, 512, 30521)
