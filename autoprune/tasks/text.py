"""Language modelling on a text file of yours, with the tokenizer that belongs to the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int
from pydantic import Field, PositiveInt

from autoprune.errors import ModelError, TaskError
from autoprune.network.huggingface import load_tokenizer
from autoprune.tasks.language import LanguageTask
from autoprune.tasks.registry import TASKS
from autoprune.tasks.split_task import SEARCH_SAMPLES
from autoprune.tasks.splits import stratified_split

#: Tokens that go through the network at once; the logits of each are as many as the vocabulary has.
TOKENS_AT_ONCE = 1024

_WAY_OUT = 'for example --data "text:stories.txt?tokenizer=FOLDER&length=256"'
_Share = Annotated[float, Field(gt=0, lt=0.5)]


@TASKS.register("text")
def text(
    target: str = "",
    *,
    tokenizer: Path | None = None,
    length: PositiveInt = 256,
    batch: PositiveInt = 1,
    search_samples: PositiveInt = SEARCH_SAMPLES,
    search_fraction: _Share = 0.1,
    test_fraction: _Share = 0.2,
) -> LanguageTask:
    """Return the task of telling the next token in a text file.

    Every line is a document. Documents are divided into three splits, which depends on their text
    alone, and one that is repeated counts once. In each split they follow each other, separated as
    the tokenizer separates texts, and are cut into sequences of equal length; tokens that are left
    over at the end are not used.

    Args:
        target: The file, in UTF-8.
        tokenizer: Folder with a tokenizer of transformers (``tokenizer.json`` and the like), as a
            model's own folder has it.
        length: Tokens that the network sees of a sequence; each has a next one to tell.
        batch: Deployment batch.
        search_samples: Most search sequences one evaluation uses.
        search_fraction: Share of the documents in the search split.
        test_fraction: Share of the documents in the test split.

    Raises:
        TaskError: The file or the tokenizer is missing or cannot be read, or there is too little
            text for a sequence of every split.
    """
    if not target or tokenizer is None:
        missing = "a file" if not target else "the folder of a tokenizer"
        raise TaskError(f"the task 'text' needs {missing}: {_WAY_OUT}")
    file = Path(target).expanduser().absolute()
    documents = _documents(file)
    shares = (1 - search_fraction - test_fraction, search_fraction, test_fraction)
    parts = stratified_split(documents, np.zeros(len(documents), np.int64), fractions=shares)
    try:
        encode = load_tokenizer(tokenizer)
    except ModelError as error:
        raise TaskError(f"the task 'text' has no tokenizer: {error}") from error
    training, search, test = (
        packed([encode(documents[place]) for place in part], length) for part in parts
    )
    counts = {"training": len(training), "search": len(search), "test": len(test)}
    if not all(counts.values()):
        raise TaskError(
            f"{file} has {len(documents)} different lines, too few for a sequence of {length} "
            f"tokens in every split ({', '.join(f'{n}: {c}' for n, c in counts.items())}); add "
            "text, one document a line, or make length smaller"
        )
    return LanguageTask(
        "text",
        training=training,
        search=search,
        test=test,
        batch=batch,
        search_samples=search_samples,
        evaluation_batch=max(1, TOKENS_AT_ONCE // length),
    )


def packed(documents: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "n length_and_next"]:
    """Return the tokens of all documents, one behind the other, in equally long sequences.

    Each begins with the last token of the one before, so that every token but the first is told
    once.

    >>> packed([[1, 5, 6], [1, 7], [1, 8, 9]], 3)
    array([[1, 5, 6, 1],
           [1, 7, 1, 8]])

    Args:
        documents: Tokens.
        length: Tokens of a sequence that have a next one.
    """
    tokens = np.array([token for document in documents for token in document], np.int64)
    count = max(0, len(tokens) - 1) // length
    sequences: np.ndarray = tokens[np.arange(count)[:, None] * length + np.arange(length + 1)]
    return sequences


def _documents(file: Path) -> list[str]:
    """Return the different lines of a file that are not blank."""
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TaskError(f"there is no file {file}; {_WAY_OUT}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} cannot be read as text in UTF-8: {error}") from error
    lines = (line.strip() for line in content.split("\n"))
    return list(dict.fromkeys(line for line in lines if line))
