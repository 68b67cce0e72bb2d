import numpy as np

from autoprune.cli.chart import Axis, Chart, sparkline, staircase


def drawn(chart):
    return [line.plain for line in chart.lines()]


def test_points_land_in_their_cells_and_those_outside_nowhere():
    chart = Chart(Axis(0.0, 4.0, 4), Axis(0.0, 3.0, 3))
    chart.draw(np.array([[0.5, 0.5], [3.9, 2.9], [2.5, 1.5], [4.5, 1.0], [1.0, -0.1]]), "o", "red")
    assert drawn(chart) == ["   o", "  o ", "o   "]


def test_ends_belong_to_the_first_and_last_cell():
    chart = Chart(Axis(1.0, 2.0, 3), Axis(0.2, 0.4, 2))
    chart.draw(np.array([[1.0, 0.2], [2.0, 0.4]]), "o", "red")
    assert drawn(chart) == ["  o", "o  "]


def test_what_is_drawn_later_covers_what_was_there():
    chart = Chart(Axis(0.0, 3.0, 3), Axis(0.0, 2.0, 2))
    chart.upright(1.5, "|", "yellow")
    chart.draw(np.array([[1.5, 0.5]]), "*", "green")
    assert drawn(chart) == [" | ", " * "]
    chart.upright(7.0, "|", "yellow")  # outside
    assert drawn(chart) == [" | ", " * "]


def test_styles_go_with_their_marks():
    chart = Chart(Axis(0.0, 4.0, 4), Axis(0.0, 1.0, 1))
    chart.draw(np.array([[1.5, 0.5], [2.5, 0.5]]), "o", "red")
    (line,) = chart.lines()
    assert [(span.start, span.end) for span in line.spans if span.style == "red"] == [(1, 3)]


def test_staircase_is_the_best_so_far():
    rng = np.random.default_rng(0)
    front = np.sort(rng.uniform(0.0, 1.0, (6, 2)), axis=0)
    axis = Axis(-0.2, 1.2, 57)
    stairs = staircase(front, axis)
    for x, y in stairs:
        assert y == max(point[1] for point in front if point[0] <= x)
    assert len(stairs) == sum(middle >= front[0, 0] for middle in axis.middles)


def test_sparkline_keeps_the_last_of_each_part():
    assert sparkline([], 4) == ""
    assert sparkline([3.0, 3.0], 4) == "▁▁"
    assert sparkline([0.0, 9.0, 0.0, 9.0, 0.0, 9.0], 3) == "▁▁▁"
    assert sparkline(range(100), 5)[-1] == "█"
    assert len(sparkline(range(100), 5)) == 5
