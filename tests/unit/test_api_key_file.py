"""A file of keys that is not right is BadFile, whatever is wrong: anything else would end whoever follows the file."""

from pathlib import Path

import pytest
from harken_server.errors import KeyLimit
from harken_server.rpc.api_keys import SETTING, ApiKeys
from harken_server.rpc.files import BadFile

ONE = f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = " + "[" * 2000, "is no TOML: maximum recursion depth exceeded"),
        (f"{ONE}tokens_per_s = {'9' * 5000}", "is no TOML: Exceeds the limit"),
        (f"{ONE}tokens_per_s = {'9' * 400}", "keys[0].tokens_per_s: Input should be less than or equal to"),
        (f"{ONE}admin = 0x{'f' * 5000}", "keys[0].admin: Input should be a valid boolean"),
        (f'{ONE}"a\\nb" = 1', "keys[0].'a\\nb': Extra inputs are not permitted, not 1"),
        (f"{ONE}{'K' * 43} = 1", "keys[0].(a name of 43 characters): Extra inputs are not permitted, not 1"),
        (f"{ONE}[{'K' * 43}]", "(a name of 43 characters): Extra inputs are not permitted"),
    ],
    ids=["nested", "digits", "over a float", "hexadecimal", "two lines", "a key as a name", "a key as a table"],
)
def test_a_file_beyond_what_its_parser_takes_is_one_line_and_changes_nothing(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(ONE)
    keys = ApiKeys(str(path), lambda: 0.0)
    before = keys.find("0" * 64)
    with pytest.raises(BadFile) as error:
        keys.use({SETTING: content.encode()})
    assert str(error.value).startswith(f"api_keys: {path}: {message}")
    assert len(str(error.value).splitlines()) == 1
    assert keys.find("0" * 64) is before


def test_a_limit_that_a_key_gets_later_begins_with_no_debt(tmp_path: Path) -> None:
    path, now_s = tmp_path / "keys.toml", 0.0
    path.write_text(ONE)
    keys = ApiKeys(str(path), lambda: now_s)
    caller = keys.find("0" * 64)
    for _ in range(1000):
        now_s += 1.0
        caller.check("a model")
        caller.spend(5000)
    keys.use({SETTING: f"{ONE}tokens_per_s = 100".encode()})
    caller.check("a model")
    caller.spend(200)
    with pytest.raises(KeyLimit) as limit:
        caller.check("a model")
    assert limit.value.retry_after_s == pytest.approx(1.01)
