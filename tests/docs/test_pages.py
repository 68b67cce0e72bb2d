"""Every block of code in README and docs runs as a reader would run it, in a folder of its own.

What a block is follows from its language and its title:

- ``sh`` and ``python`` run, page by page from top to bottom. Of a search only a few trials run
  (:func:`shorten`), so that a page takes seconds; nothing else is changed.
- A title that names a file (``title="mine.py"``) writes the block to that file.
- ``output`` is what the block before it printed, ``...`` standing for anything.
- ``text`` is a drawing.
- A title that begins with ``not run:`` tells the reader why; :data:`NOT_RUN` counts those.
"""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from autoprune.cli.main import main
from autoprune.run.settings import RunSettings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
]

#: Why blocks do not run here, and how many there are of each; the pages say the same.
NOT_RUN = {
    "installs packages": 3,
    "takes minutes": 1,
    "with files of yours": 1,
    "measures for minutes": 2,
    "needs a board": 1,
    "needs a cluster": 4,
    "needs a database": 1,
    "needs the published tables": 1,
    "serves until it is stopped": 1,
}

#: Options that make a command short; the last of two is the one that counts.
SHORT = {"finetune": ("--epochs", "1", "--samples", "64", "--checks", "1")}
_RUN = ("sh", "python")
_FILE = re.compile(r"[\w./-]+\.\w+")
_SHELL = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        where: Page and line.
        language: First word after the fence.
        title: What is shown above it.
        text: Its content.
    """

    where: str
    language: str
    title: str
    text: str

    @property
    def reason(self) -> str:
        """Why it is not run; empty where it is."""
        return self.title.removeprefix("not run: ") if self.title.startswith("not run:") else ""

    @property
    def file(self) -> str:
        """The file that it is written to; empty for none."""
        return self.title if _FILE.fullmatch(self.title) else ""


def blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page."""
    found = []
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            where = f"{page}:{token.map[0] + 1}"
            found.append(Block(where, language, title[1] if title else "", token.content))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a shell block, continued lines joined and comments left out.

    >>> commands("a b \\\\\\n  c\\n# not this\\nd")
    ['a b   c', 'd']
    """
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def agree(wanted: str, printed: str) -> bool:
    """Return whether two texts have the same words, ``...`` in the first standing for any.

    >>> agree("a ... d", "a\\n  b c d\\n")
    True
    """
    pattern = re.escape(" ".join(wanted.split())).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


class Reader:
    """Somebody who types what a page says, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""

    def follow(self, block: Block) -> None:
        """Do what a block says; raises where it does not work."""
        if block.reason or block.language == "text":
            return
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "output":
            assert agree(block.text, self.printed), f"{block.where}: it printed\n{self.printed}"
        elif block.language == "python":
            self.printed = self._python(block)
        else:
            self.printed = "".join(self._shell(line, block) for line in commands(block.text))

    def _python(self, block: Block) -> str:
        # The lines of a traceback are then those of the page.
        shift = "\n" * int(block.where.rpartition(":")[2])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(shift + block.text, block.where, "exec"), self.names)
        return out.getvalue()

    def _shell(self, line: str, block: Block) -> str:
        words = shlex.split(line, comments=True)
        if words[0] != "autoprune" or _SHELL & set(words):
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", line],
                cwd=self.folder,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            assert done.returncode == 0, f"{block.where}: {line}\n{done.stdout}{done.stderr}"
            return done.stdout
        # In this process: to start another takes longer than most commands do.
        arguments = words[1:] + list(SHORT.get(words[1], ()))
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            code = main(arguments)
        assert code == 0, f"{block.where}: {line}\n{out.getvalue()}{err.getvalue()}"
        return out.getvalue()


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Somebody in an empty folder with autoprune installed, whose searches are short."""
    monkeypatch.chdir(tmp_path)
    # The folder of this environment's programs, and that of files which a page writes.
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    shorten(monkeypatch)
    yield Reader(tmp_path)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def shorten(monkeypatch) -> None:
    """Cut down what a search evaluates, however it is started."""
    checked, limited = RunSettings.checked, RunSettings.with_limits

    def tiny(settings: RunSettings) -> RunSettings:
        small = {
            "trials": min(settings.trials, 2),
            "executor": "inline",
            "calibration_samples": min(settings.calibration_samples, 16),
        }
        return settings.model_copy(update=small)

    monkeypatch.setattr(RunSettings, "checked", lambda values: tiny(checked(values)))
    monkeypatch.setattr(
        RunSettings, "with_limits", lambda self, limits: tiny(limited(self, limits))
    )


def _runs(page: str) -> bool:
    return any(block.language in _RUN and not block.reason for block in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(_runs, PAGES)))
def test_what_a_page_says_works(page, reader):
    for block in blocks(page):
        reader.follow(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_known_kind(page):
    for block in blocks(page):
        known = block.language in (*_RUN, "output", "text") or block.file
        assert known or block.reason, (
            f"{block.where}: {block.language!r} is nothing that is checked"
        )


@pytest.mark.parametrize("page", PAGES)
def test_code_is_fenced(page):
    """An indented block would be shown as code, and never run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    indented = [token for token in MarkdownIt().parse(text) if token.type == "code_block"]
    assert not indented, f"{page}:{indented[0].map[0] + 1}"


def test_what_is_not_run_is_counted():
    every = [block for page in PAGES for block in blocks(page)]
    code = [block for block in every if block.language not in ("output", "text")]
    reasons = Counter(block.reason for block in code if block.reason)
    assert reasons == NOT_RUN
    assert len(code) > 2 * reasons.total()
