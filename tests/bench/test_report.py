"""Reports of rows, and comparisons of two files of them."""

import itertools
import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from bench.examples import CPU, row
from matroot.bench import compare, drawing, plots, report, rows

ROOT = Path(__file__).parents[2]


def page_of(found, folder, complaints=()):
    report.write(found, list(complaints), folder)
    return (folder / "index.html").read_text(), (folder / "report.md").read_text()


def test_a_failed_root_is_shown_as_failed_in_page_and_plot(tmp_path):
    good, bad = row(), row("other", error=0.5, passed=False, why="error 5.0e-01, allowed 1.0e-05")
    html, markdown = page_of([good, bad], tmp_path)
    assert "1, 1× FAILED" in html
    assert "FAILED" in markdown
    svg = (tmp_path / "plots/speed-4x8-error.svg").read_text()
    assert "failed its accuracy gate" in svg
    html, _ = page_of([good, row("other")], tmp_path / "all good")
    svg = (tmp_path / "all good/plots/speed-4x8-error.svg").read_text()
    assert "failed its accuracy gate" not in svg


def test_results_that_are_not_finite_are_named_below_the_plot(tmp_path):
    lost = row("other", error=None, passed=False, why="not finite")
    html, markdown = page_of([row(), lost], tmp_path)
    assert "Not drawn: other (not finite)" in html
    assert "Not drawn: other (not finite)" in markdown


def test_the_page_is_one_file_and_escapes_its_texts(tmp_path):
    evil = '<script>alert(1)</script>|`"'
    found = [
        row(evil, why=evil, version=evil),
        row(
            evil,
            experiment="capability",
            probe="x",
            case="capability x",
            question=evil,
            answer="n",
            why=evil,
        ),
    ]
    html, markdown = page_of(found, tmp_path, [evil])
    for text in (html, markdown):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:image/svg|#)', html)
    assert "@import" not in html
    assert 'name="viewport"' in html
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(re.search(r"(?<!\\)\|\s*$", line) for line in lines)


def test_what_rows_say_is_no_path_and_no_formula(tmp_path):
    """Names of plots, and the text in them, come from the rows."""
    odd = row("$\\frac", experiment="accuracy", dtype="../../../above $_", case="accuracy")
    folder = tmp_path / "a/b/c"
    page_of([odd], folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert all(path.is_relative_to(folder) for path in files)


def test_every_plot_is_there_three_times(tmp_path):
    found = [row(), row("other", ms={"forward": [3.0, 2.9, 3.1]})]
    html, markdown = page_of(found, tmp_path)
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.svg"))
    assert names == ["speed-4x8-error", "speed-4x8-gradient_error"]
    assert names == sorted(path.stem for path in (tmp_path / "plots").glob("*.png"))
    assert html.count("data:image/svg+xml") == 2
    assert all(f"(plots/{name}.svg)" in markdown for name in names)
    origin = rows.provenance(CPU)
    for text in (html, (tmp_path / "plots/speed-4x8-error.svg").read_text()):
        assert origin["torch"].split("+")[0] in text
        assert f"{origin['threads']} threads" in text


def test_environments_are_kept_apart(tmp_path):
    other = row(device_name="Another One", ms={"forward": [9.0, 9.0, 9.0]})
    html, _ = page_of([row(), other, row(quick=True)], tmp_path)
    assert html.count("<h2") == 3
    assert "2. Another One" in html
    assert html.count("A look, not a result") == 1
    assert (tmp_path / "plots/speed-4x8-error-3.svg").exists()


def test_the_same_rows_give_the_same_report(tmp_path):
    for name in "ab":
        page_of([row(measured="then")], tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_the_report_reports_its_progress(tmp_path):
    steps = []
    written = report.write(
        [row(measured="then")], [], tmp_path, progress=lambda *step: steps.append(step)
    )
    plots = sum(path.suffix == ".svg" for path in written)
    assert plots > 0
    assert steps == [(i, plots) for i in range(plots + 1)]


@pytest.mark.parametrize("name", ["paper", "peers", "hard", "scale"])
def test_every_recorded_row_is_read(name):
    """Those of ``degree`` say in words what their matrices are, those of ``hard`` how many."""
    found, complaints = rows.load(ROOT / f"benchmarks/results/{name}-cpu.jsonl")
    assert found
    assert complaints == []


def test_names_at_the_ends_of_lines_do_not_overlap():
    figure, axes = plots.panel("", "")
    axes.plot([0, 1], [0, 1])
    axes.set_ylim(0, 1)
    heights = [0.5, 0.501, 0.5, 0.99, 1.0, 0.02]
    plots.label_ends(axes, [(f"name {i}", "black", 1, y) for i, y in enumerate(heights)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(heights)
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    # Far from others, a name is where its line ends.
    low = axes.transAxes.inverted().transform(boxes[0])[:, 1]
    assert low.mean() == pytest.approx(0.02, abs=0.01)


def test_noise_does_not_fill_a_plot():
    found = [row(n=n, case=f"a {n}", error=error) for n, error in ((4, 1.0), (8, 1.02))]
    axes = curve(found).axes[0]
    low, high = axes.get_ylim()
    assert high / low == pytest.approx(4)
    assert low < 1 < 1.02 < high
    axes.figure.draw_without_rendering()
    labels = [
        text.get_text() for text in axes.get_yticklabels() if low < text.get_position()[1] < high
    ]
    assert labels == ["0.7", "1", "1.5", "2"]


def test_titles_say_who_is_first(tmp_path):
    times = {"forward": [3.0, 2.9, 3.1]}
    html, _ = page_of([row(), row("slow", ms=times), row("wrong", passed=False)], tmp_path)
    assert "matroot is fastest, 3 times as fast as slow" in html
    html, _ = page_of([row(), row("as fast")], tmp_path)
    assert "as fast and matroot are fastest" in html
    sizes = [row(n=n, case=f"a {n}", error=n**-2.0) for n in (4, 8)]
    assert curve(sizes, ranked=False).get_suptitle().strip() == "least 0.016, by matroot with 8"


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        report.write([], [], tmp_path)


def test_only_changes_beyond_noise_count():
    before = row(ms={"forward": [10, 9, 11], "backward": [10, 9, 11], "total": [10, 9, 11]})
    after = row(ms={"forward": [5, 4.5, 5.5], "backward": [10.5, 9, 12], "both": [1, 1, 1]})
    forward, backward = compare.changes([before], [after, row("unknown")])
    assert (forward.verdict, forward.ratio) == ("faster", 0.5)
    assert (forward.low, forward.high) == (4.5 / 11, 5.5 / 9)
    assert backward.verdict == "within noise"
    assert compare.changes([after], [before])[0].verdict == "slower"
    assert compare.mean_ratio([forward, forward]) == pytest.approx(0.5)


def test_gates_that_changed():
    failed = row(passed=False, why="error 1")
    assert "fails its gate now (error 1)" in compare.changed_gates([row()], [failed])[0]
    assert "passes its gate now" in compare.changed_gates([failed], [row()])[0]
    assert compare.changed_gates([row()], [row()]) == []


def drawn(sizes, name):
    return curve([row(n=n, case=f"a {n}", error=n**-2.0) for n in sizes], name)


def curve(found, name="", **more):
    words = {"title": "", "footer": "", "x": "n", "y": "error", "x_label": "n", "y_label": "error"}
    palette = plots.colours(["matroot"])
    return plots.curves(found, name=name, palette=palette, **words, **more).figure


def test_processes_draw_the_same_plots(monkeypatch):
    names = ("a", "b")
    alone = [drawing.draw(drawn((4, 8, 16), name), name) for name in names]
    monkeypatch.setattr(drawing, "_PLOTS_OF_A_PROCESS", 1)
    monkeypatch.setattr(drawing.os, "cpu_count", lambda: 2)
    assert list(drawing.draw_all([drawn((4, 8, 16), name) for name in names], names)) == alone


def test_ticks_are_powers_of_ten_in_plain_text():
    svg = drawing.draw(drawn((10, 100, 1000), "a"), "salt")[0].decode()
    assert ">10⁻⁴<" in svg
    assert "mathdefault" not in svg
