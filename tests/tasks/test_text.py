from __future__ import annotations

import os
import re

import numpy as np
import pytest

from autoprune.errors import TaskError
from autoprune.tasks.load import absolute_spec, load_task
from autoprune.tasks.text import packed, text

transformers = pytest.importorskip("transformers")
WORDS = [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a tokenizer of 40 words, numbered from 2 on; 0 ends, 1 is unknown."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    place = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(place)
    return place


@pytest.fixture
def file(tmp_path):
    """Return a file of 60 different lines; line i is a run of words that no other line has."""
    lines = [
        " ".join(WORDS[i % 40] for i in range(line, line + 3 + line % 7)) for line in range(40)
    ]
    lines += [f"{WORDS[i]} {WORDS[i]}" for i in range(20)]
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(lines) + "\n" + lines[0] + "\n", encoding="utf-8")
    return path


def documents(sequences):
    """Return what stands between the ends of documents in sequences that follow each other."""
    stream = [*sequences[:, :-1].ravel().tolist(), int(sequences[-1, -1])]
    found, current = set(), []
    for token in stream:
        current.append(token)
        if token == 0:
            found.add(tuple(current))
            current = []
    return found


def test_every_document_is_in_one_split_and_counts_once(file, folder):
    task = text(str(file), tokenizer=folder, length=5)
    encoded = {
        (*(WORDS.index(word) + 2 for word in line.split()), 0)
        for line in file.read_text().split("\n")
        if line
    }
    splits = [
        documents(part) for part in (task.training.tokens, task.search.tokens, task.test.tokens)
    ]
    # The last tokens of a split are left over, so its last documents may be missing.
    assert 55 <= sum(map(len, splits)) <= 60
    assert set().union(*splits) <= encoded
    assert sum(map(len, splits)) == len(set().union(*splits))
    sizes = [len(part) for part in splits]
    assert sizes[0] > sizes[2] > sizes[1] > 3


def test_splits_do_not_depend_on_the_order_of_lines(file, folder, tmp_path):
    other = tmp_path / "turned.txt"
    other.write_text("\n".join(reversed(file.read_text().split("\n"))), encoding="utf-8")
    first, second = (text(str(path), tokenizer=folder, length=5) for path in (file, other))
    np.testing.assert_array_equal(first.training.tokens, second.training.tokens)
    np.testing.assert_array_equal(first.test.tokens, second.test.tokens)


def test_packed_sequences_tell_every_token_but_the_first_once():
    generator = np.random.default_rng(0)
    tokens = [generator.integers(0, 9, size).tolist() for size in (4, 1, 7, 9)]
    flat = [token for document in tokens for token in document]
    sequences = packed(tokens, 4)
    assert sequences.shape == (5, 5)
    assert sequences[:, 1:].ravel().tolist() == flat[1:21]
    assert sequences[:, :-1].ravel().tolist() == flat[:20]
    assert packed(tokens, 21).shape == (0, 22)
    assert packed([], 3).shape == (0, 4)


def test_a_description_names_the_tokenizer_and_the_length(file, folder):
    task = load_task(f"text:{file}?tokenizer={folder}&length=4", batch=3)
    (tokens,) = task.example_inputs()
    assert tokens.shape == (3, 4)
    np.testing.assert_array_equal(
        task.test.tokens, text(str(file), tokenizer=folder, length=4).test.tokens
    )


def test_a_description_holds_in_any_folder(file, folder, monkeypatch):
    monkeypatch.chdir(file.parent)
    spec = absolute_spec(f"text:lines.txt?tokenizer={os.path.relpath(folder)}&length=4")
    assert spec.startswith(f"text:{file}?tokenizer={file.parent}")
    assert spec.endswith("&length=4")
    monkeypatch.chdir("/")
    assert load_task(spec).name == "text"


def test_what_is_missing_is_named(file, folder, tmp_path):
    with pytest.raises(TaskError, match=r"needs a file: .*text:stories\.txt\?tokenizer="):
        load_task("text")
    with pytest.raises(TaskError, match="needs the folder of a tokenizer"):
        load_task(f"text:{file}")
    with pytest.raises(TaskError, match=re.escape(f"there is no file {tmp_path / 'none.txt'}")):
        load_task(f"text:{tmp_path / 'none.txt'}?tokenizer={folder}")
    with pytest.raises(TaskError, match=re.escape(f"there is no folder {tmp_path / 'none'}")):
        load_task(f"text:{file}?tokenizer={tmp_path / 'none'}")
    with pytest.raises(TaskError, match=re.escape(f"no tokenizer can be read from {tmp_path}")):
        load_task(f"text:{file}?tokenizer={tmp_path}")


def test_too_little_text_is_counted(file, folder):
    with pytest.raises(TaskError, match=r"60 different lines.*1000 tokens.*search: 0"):
        text(str(file), tokenizer=folder, length=1000)


def test_what_is_not_text_is_refused(folder, tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as text in UTF-8"):
        text(str(path), tokenizer=folder)


def test_wrong_options_are_listed_together(file, folder):
    with pytest.raises(TaskError) as error:
        load_task(f"text:{file}?tokenizer={folder}&length=0&colour=red")
    assert "length = '0'" in str(error.value)
    assert "colour = 'red'" in str(error.value)
