import ast
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.measure import board
from autoprune.measure.board import Rounds, Timing, interleaved, spread, without_call

ROUNDS = Rounds(warm_up=1, count=5, most=12, visit_ms=1.0)


def constant(milliseconds):
    return lambda passes: [milliseconds] * passes


class Scripted:
    """A timer that goes through given values, one per visit, then stays at the last one."""

    def __init__(self, values):
        self.values, self.visits = list(values), 0

    def __call__(self, passes):
        value = self.values[min(self.visits, len(self.values) - 1)]
        self.visits += 1
        return [value] * passes


def test_every_item_is_visited_once_per_round_in_both_directions():
    seen = []

    def timer(name):
        def visit(passes):
            seen.append(name)
            return [2.0] * passes

        return visit

    result = interleaved({"a": timer("a"), "b": timer("b")}, constant(1.0), ROUNDS)
    assert "".join(seen) == "ab" + "abba" * 2 + "ab"  # warm-up, then five rounds
    assert result.items["a"] == Timing(2.0, 0.0, 5, 1.0)
    assert (len(result.reference_ms), result.repeated) == (5, 0)


def test_short_items_make_several_passes():
    seen = []

    def timer(passes):
        seen.append(passes)
        return [0.1] * passes

    interleaved({"a": timer}, constant(5.0), ROUNDS)
    assert seen == [1, *[11] * 5]  # the first of a visit is not counted


def test_first_pass_of_a_visit_does_not_count():
    def timer(passes):
        return [9.0, *[2.0] * (passes - 1)]

    assert interleaved({"a": timer}, timer, ROUNDS).items["a"].latency_ms == 2.0


def test_rounds_with_a_slow_reference_do_not_count_and_are_repeated():
    # Warm-up, then before and after each round; the second and third rounds are disturbed.
    reference = Scripted([1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0])
    item = Scripted([4.0, 4.0, 9.0, 9.0, 4.0])
    result = interleaved({"a": item}, reference, ROUNDS)
    assert result.items["a"] == Timing(4.0, 0.0, 5, 1.0)
    assert result.repeated == 2


def test_unsteady_items_are_visited_again_alone():
    steady, restless = Scripted([4.0]), Scripted([4.0, 4.0, 8.0, 4.0, 8.0, *[4.0] * 8])
    result = interleaved({"steady": steady, "restless": restless}, constant(1.0), ROUNDS)
    assert steady.visits == 1 + 5
    assert 1 + 5 < restless.visits <= 1 + 12
    assert result.items["restless"].latency_ms == 4.0


def test_rounds_have_a_bound():
    values = Scripted([1.0, *[2.0, 8.0] * 40])
    assert interleaved({"a": values}, constant(1.0), ROUNDS).repeated == 12 - 5


def test_three_rounds_are_made_when_time_is_up():
    result = interleaved({"a": constant(2.0)}, constant(1.0), ROUNDS, over=lambda: True)
    assert result.items["a"].rounds == 3


def test_where_hardly_a_round_is_undisturbed_all_count():
    # Warm-up, then before and after each round: every round is twice as slow as the one before.
    reference = Scripted([1.0, *[2.0**i for i in range(40) for _ in range(2)]])
    result = interleaved({"a": constant(2.0)}, reference, ROUNDS)
    assert (result.items["a"].latency_ms, result.items["a"].rounds) == (2.0, 5)


def test_spread_is_the_interquartile_range_over_the_median():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([3.0]) == 0.0


def test_call_is_taken_off_a_kernel():
    own = without_call(Timing(0.5, 0.04, 7), Timing(0.1, 0.0, 7))
    assert own is not None
    assert (own.latency_ms, own.iqr) == (pytest.approx(0.4), pytest.approx(0.05))
    assert without_call(Timing(0.12, 0.04, 7), Timing(0.1, 0.0, 7)) is None


def test_timer_waits_and_reads_the_clock():
    clock = iter([1.0, 1.5, 2.0, 2.25])
    done = []
    timer = board.timed(lambda: done.append("run"), lambda: next(clock), lambda: done.append("end"))
    assert timer(2) == [500.0, 250.0]
    assert done == ["run", "end"] * 2


def test_clock_of_the_thread_stands_still_while_it_sleeps():
    import time

    clock = board.clock_of("cpu")
    before = clock()
    time.sleep(0.05)
    # Half of the sleep leaves room for a coarse clock.
    assert clock() - before < 0.025
    assert board.clock_of("wall") is time.perf_counter


def test_rows_are_appended_and_a_line_cut_off_is_dropped(tmp_path):
    file = tmp_path / "t.csv"
    board.append_rows(file, ("a", "b"), [{"a": 1, "b": "x, y"}])
    with file.open("a") as open_file:
        open_file.write("2,cut")
    assert board.read_rows(file) == [{"a": "1", "b": "x, y"}]
    board.append_rows(file, ("a", "b"), [{"a": 3}])
    assert file.read_text() == 'a,b\n1,"x, y"\n3,\n'
    assert board.read_rows(tmp_path / "absent.csv") == []


def test_pinning_ends_with_the_body():
    import os

    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system cannot pin processes")
    before = os.sched_getaffinity(0)
    with board.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_script_is_python_3_8_and_needs_no_other_package():
    source = Path(board.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    top = {
        name.name.split(".")[0] if isinstance(node, ast.Import) else node.module.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert top <= set(sys.stdlib_module_names)


# --- a trtexec that does not exist ----------------------------------------------------------------

_TRTEXEC = """#!{python}
import json, sys
options = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] #")
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if "bad" in options.get("onnx", ""):
    print("unsupported operator Frobnicate")
    sys.exit(1)
if "saveEngine" in options:
    open(options["saveEngine"], "w").close()
if "exportTimes" in options:
    times = [{{"computeMs": 2.5 + i, "latencyMs": 9}} for i in range(int(options["iterations"]))]
    open(options["exportTimes"], "w").write(json.dumps(times))
"""


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """A program that takes trtexec's options, and the file it notes them in."""
    log = tmp_path / "calls.txt"
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(_TRTEXEC.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program, log


def test_trtexec_builds_once_and_reports_times(trtexec, tmp_path):
    program, log = trtexec
    assert board.find_trtexec() == str(program)
    assert board.trtexec_version(str(program)) == "8.2.1"
    timer = board.trtexec_timer(str(program), tmp_path / "net.onnx", precision="fp16")
    again = board.trtexec_timer(str(program), tmp_path / "net.onnx", precision="fp16")
    assert timer(2) == [2.5 + i for i in range(10)]  # never fewer than ten
    assert len(again(12)) == 12
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    built = [call for call in calls if any(a.startswith("--saveEngine") for a in call)]
    assert len(built) == 1
    assert "--fp16" in built[0]


def test_trtexec_that_fails_is_quoted(trtexec, tmp_path):
    with pytest.raises(RuntimeError, match="unsupported operator Frobnicate"):
        board.trtexec_timer(str(trtexec[0]), tmp_path / "bad.onnx", precision="fp32")


@pytest.mark.parametrize(
    ("digits", "version"), [("8201", "8.2.1"), ("100300", "10.3.0"), ("x", "unknown")]
)
def test_version_of_trtexec(digits, version, monkeypatch):
    def help_of(*_, **__):
        return subprocess.CompletedProcess(
            [], 0, f"RUNNING TensorRT.trtexec [TensorRT v{digits}]", ""
        )

    monkeypatch.setattr(subprocess, "run", help_of)
    assert board.trtexec_version("trtexec") == version
