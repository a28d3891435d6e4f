"""Foreign text is shown as plain text everywhere; credentials in addresses are always masked."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError
from bench.safe_text import (
    content_without_secrets,
    for_csv,
    for_html,
    for_latex,
    for_markdown,
    for_terminal,
    one_line,
    without_secrets,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x", "https://***@host/x"),
        ("https://TOKEN@host/x", "https://***@host/x"),
        ("s3://KEY:SEC/RET+x@bucket/a", "s3://***@bucket/a"),
        ("s3://KEY:se@cret@bucket/a", "s3://***@bucket/a"),
        ("memory://AKIA:sEcReT@bucket", "memory://***@bucket"),
        ("simplecache::ftp://u:p@h/x", "simplecache::ftp://***@h/x"),
        ("zip://a.zip::https://u:p@h/x and s3://K:S@b", "zip://***@h/x and s3://***@b"),
        ("https://h/x?sig=abc&st=2", "https://h/x?sig=***&st=2"),
        ("https://h/x?a=1&X-Amz-Signature=12&X-Amz-Credential=k#access_token=z",
         "https://h/x?a=1&X-Amz-Signature=***&X-Amz-Credential=***#access_token=***"),
        ("https://h:8080/a@b", "https://h:8080/a@b"),
        ("s3://bucket/a@b/c?version=3", "s3://bucket/a@b/c?version=3"),
        ("mail a@b, key=value, /data/a:b@c", "mail a@b, key=value, /data/a:b@c"),
        ("", ""),
    ],
)  # fmt: skip
def test_credentials_are_masked_everywhere(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown, "masking twice is masking once: fingerprints are taken of masked text"
    assert str(DataError(text)) == shown
    assert content_without_secrets({"a": [text, 1, None, {"b": text}]}) == {"a": [shown, 1, None, {"b": shown}]}


@given(st.text())
def test_foreign_text_is_safe_in_a_terminal(text: str) -> None:
    shown = for_terminal(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in shown)
    assert "\n" not in one_line(text)
    assert "\x1b" not in for_latex(text) + for_markdown(text) + for_html(text)
    assert "<" not in for_html(text) + for_markdown(text)


def test_escaped_json_decodes_to_the_original() -> None:
    evil = "\u202eabc\x9b31m"
    assert json.loads(for_terminal(json.dumps(evil, ensure_ascii=False))) == evil


@pytest.mark.parametrize("formula", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd", "@SUM(1)", "\t=1", " =1", "\uff1d1"])
def test_csv_cells_are_never_formulas(formula: str) -> None:
    assert for_csv(formula).startswith("'")
    assert next(csv.reader(io.StringIO(for_csv(formula))))


@pytest.mark.parametrize("number", ["-0.5", "+1e-3", "-0.5 1.125", "12", "a - b", "2018-06-01"])
def test_numbers_and_plain_words_are_unchanged_in_csv(number: str) -> None:
    assert for_csv(number) == number
