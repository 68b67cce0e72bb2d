import io

import pytest

from autoprune.cli.letters import make_readable


def written(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    make_readable(stream)
    stream.write(text)
    stream.flush()
    return raw.getvalue().decode(encoding)


TEXT = "9.98\N{NO-BREAK SPACE}ms ±7 %, \N{MINUS SIGN}44 % ● ★ ─┊ 网"


def test_a_terminal_of_few_letters_gets_the_nearest():
    assert written(TEXT, "ascii") == "9.98 ms ~7 %, -44 % o * -| ?"
    assert written("▁▅█", "ascii") == "_-#"


def test_what_a_terminal_has_stays():
    assert written(TEXT, "utf-8") == TEXT
    assert written("±7 %", "latin-1") == "±7 %"


def test_reading_is_not_made_readable():
    stream = io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="ascii")
    make_readable(stream)
    with pytest.raises(UnicodeDecodeError):
        stream.read()
