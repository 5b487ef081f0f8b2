"""``matroot bench``: paper, peers, scale, hard, report and compare."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from matroot.files import held
from matroot.terminal import check_file, check_folder, console, interrupted, progress, working

if TYPE_CHECKING:
    from matroot.bench.cases import Case, Settings
    from matroot.bench.rows import Row

app: typer.Typer = typer.Typer(
    help="Measure the paper's methods and other packages beside matroot, and report.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
_T = TypeVar("_T")
VIOLATIONS = "hard-violations"
"""The folder of saved violations, beside the file of rows."""


class DeviceName(enum.StrEnum):
    """Where it runs."""

    CPU = "cpu"
    CUDA = "cuda"


class DtypeName(enum.StrEnum):
    """Of the matrices, where an experiment does not prescribe one."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


Quick = Annotated[
    bool, typer.Option("--quick", help="Fewer, smaller cases: under 2 minutes on two cores.")
]
Device = Annotated[DeviceName, typer.Option(help="Times on cuda are taken by device events.")]
Dtype = Annotated[DtypeName, typer.Option(help="Of the matrices.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File of rows; default bench/WHAT-DEVICE[-quick].jsonl."),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start a new file; an old one is kept under another name.")
]
Only = Annotated[
    str | None, typer.Option(help="These experiments only, separated by commas (see below).")
]


@app.command(
    epilog="Experiments: headline, batch, size, condition, degree, mae, scalar, convergence, "
    "lyapunov. After Ctrl-C the same command continues where it was."
)
def paper(
    quick: Quick = False,
    device: Device = DeviceName.CPU,
    dtype: Dtype = DtypeName.FLOAT32,
    output: Output = None,
    only: Only = None,
    fresh: Fresh = False,
) -> None:
    """All numerical tests of the paper: its methods and baselines, eigh and matroot in turns.

    Root and inverse root; forward and backward separately; time and error against size, batch,
    degree and condition number; scalar curves; the Lyapunov iteration; the applications' shapes
    with the published figures next to them. Every finished case is on disk at once.
    """
    from matroot.bench import claims, rows
    from matroot.bench.paper import EXPERIMENTS

    settings = _settings(device, dtype, quick)
    chosen = _chosen(only, EXPERIMENTS)
    path = output or _default("paper", settings)
    _measure([c for make in chosen for c in make(settings)], path, settings, fresh=fresh)
    found = claims.claims(rows.load(path)[0])
    if found:
        head = ("claim", "here", "figures")
        _show("The paper's claims", head, [(c.statement, c.verdict, c.evidence) for c in found])
    _point_to(path)


@app.command(
    epilog="Experiments: capability, accuracy, speed, memory. After Ctrl-C the same command "
    "continues where it was."
)
def peers(
    quick: Quick = False,
    device: Device = DeviceName.CPU,
    dtype: Dtype = DtypeName.FLOAT32,
    output: Output = None,
    only: Only = None,
    fresh: Fresh = False,
) -> None:
    """Other packages' square roots and matroot's: what they can do, how exactly, how fast.

    Packages that are not installed are named and left out; pip install '.[bench]' in a clone of
    matroot installs them. The table of capabilities comes from running each, never from its
    documentation.
    """
    with working("loading the packages"):
        from matroot.bench import rows
        from matroot.bench.packages import available
        from matroot.bench.peers import EXPERIMENTS

    settings = _settings(device, dtype, quick)
    chosen = _chosen(only, EXPERIMENTS)
    path = output or _default("peers", settings)
    found, missing = available(settings.device)
    for line in missing:
        console().print(f"left out: {line}", style="yellow", markup=False)
    _measure([c for make in chosen for c in make(settings, found)], path, settings, fresh=fresh)
    known = rows.pick(rows.load(path)[0], experiment="capability")
    if known:
        _show("Who can do what", ("", "version", "can", "cannot, or has not"), _abilities(known))
    _point_to(path)


@app.command(
    epilog="Experiments: collectives, map, balance, whitening, huge. The model needs collectives. "
    "After Ctrl-C the same command continues where it was."
)
def scale(
    quick: Quick = False,
    output: Output = None,
    only: Only = None,
    fresh: Fresh = False,
) -> None:
    """Several processes on this machine, and a model that says what more of them would take.

    Starts processes of one thread each, connected by gloo: one and two are timed in turns, with
    four and eight results are checked and collectives and bytes counted. Collectives of two give
    latency and bandwidth; map takes Shampoo's 300 matrices, balance their shares one after the
    other; whitening is a training step with the statistics of all, huge one matrix in blocks. The
    model (time = operations/rate + messages·α + bytes/β) is shown beside each time, and what it
    says of GPUs by published constants. An idle machine with two cores gives times worth having.
    """
    from matroot.bench import rows, scale_report
    from matroot.bench.scale import EXPERIMENTS
    from matroot.context import one_thread

    chosen = _chosen(only, EXPERIMENTS)
    with one_thread():
        settings = _settings(DeviceName.CPU, DtypeName.FLOAT32, quick)
        path = output or _default("scale", settings)
        _measure([c for make in chosen for c in make(settings)], path, settings, fresh=fresh)
    found = rows.load(path)[0]
    for title, table in scale_report.tables(found).items():
        if table.body:
            _show(title, table.head, [[cell.text for cell in line] for line in table.cells])
    _point_to(path)


@app.command(epilog="After Ctrl-C, or the end of --minutes, the same command continues there.")
def hard(
    matrices: Annotated[
        float, typer.Option(min=1, max=1e9, help="How many in all, such as 1e7; with --quick 1e4.")
    ] = 1e5,
    seed: Annotated[int, typer.Option(help="Other matrices, and others again.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="At work, of one thread each.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no block of matrices after that.")
    ] = None,
    quick: Quick = False,
    output: Output = None,
    fresh: Fresh = False,
    replay: Annotated[
        Path | None, typer.Option(help="Examine the matrices of such a file again, and no others.")
    ] = None,
) -> None:
    """Hard matrices by the million, every result judged: none may be wrong and look right.

    21 families (singular, graded, clustered, of integers, of one unit in the last place, near
    overflow, indefinite …), n = 1 to 256 and a few of 1000, all dtypes; values, gradients,
    residuals, bounds, bits in other company. What breaks a rule is saved, minimised, beside the
    rows in hard-violations, and counted; the exit status is then 1. LAPACK by hand, torch, SciPy
    and JAX are given the first 32 matrices of each block.
    """
    from matroot.bench import hard_report, rows

    if replay is not None:
        _replay(replay)
        return
    settings = _settings(DeviceName.CPU, DtypeName.FLOAT32, quick)
    path = output or _default("hard", settings)
    total = int(1e4 if quick else matrices)
    check_file(path)
    check_folder(path.parent / VIOLATIONS)
    with held(path, path.with_name(f".{path.name}.lock")):
        _examine(total, seed, path, fresh=fresh, processes=processes, minutes=minutes)
    found = rows.pick(rows.load(path)[0], experiment="hard") if path.exists() else []
    if not found:
        console().print("nothing was measured: --minutes were over before the first block")
        return
    for title, table in hard_report.tables(found).items():
        _show(title, table.head, [[cell.text for cell in line] for line in table.cells])
    _point_to(path)
    broken = sum(sum(row["violations"].values()) for row in found)
    if broken:
        console().print(f"{broken} violations; files in {path.parent / VIOLATIONS}", style="red")
        raise typer.Exit(1)


def _examine(
    total: int, seed: int, path: Path, *, fresh: bool, processes: int, minutes: float | None
) -> None:
    """Run blocks with a progress bar; Ctrl-C keeps finished blocks."""
    from matroot.bench import hard_run
    from matroot.context import one_thread

    _begin(path, fresh=fresh)
    steps = hard_run.run(
        seed, total, path, path.parent / VIOLATIONS, processes=processes, minutes=minutes
    )
    try:
        with one_thread(), progress(clock=True) as bar:
            task = bar.add_task("", total=None)
            for step in steps:
                bar.update(task, description=step.title, completed=step.done, total=step.total)
    except KeyboardInterrupt:
        raise interrupted(
            f"what is finished stands in {path}, and the same command goes on from there"
        ) from None


def _replay(path: Path) -> None:
    """Examine a saved violation again; exit status 1 if a rule is still broken."""
    from matroot.bench import hard_cases
    from matroot.context import one_thread

    case = hard_cases.load(path)
    with one_thread():
        seen = hard_cases.replay(case)
    body = [("rule", case.kind), ("matrices", f"{tuple(case.a.shape)}, {case.a.dtype}")]
    body += [("method, backend", f"{case.subject.method}, {case.subject.backend}")]
    body += [(name.replace("_", " "), str(value)) for name, value in case.origin.items()]
    _show("What was examined", ("", ""), body)
    if case.a[0].numel() <= 16:
        console().print(str(case.a[0]), markup=False)
    names = dict.fromkeys((*case.seen, *seen.findings.quantities))
    now = {name: float(x[0]) for name, x in seen.findings.quantities.items()}
    then = {name: x for name, x in case.seen.items() if x is not None}
    columns = ("", "when saved", "now")
    lines = [
        [name, *(f"{t[name]:.3g}" if name in t else "–" for t in (then, now))] for name in names
    ]
    _show("Of the first matrix", columns, lines)
    if seen.certified is not None:
        for root, (low, high) in seen.certified.items():
            console().print(f"certified relative error of {root}: {low:.3g} to {high:.3g}")
    broken = {name: int(x.sum()) for name, x in seen.findings.violations.items()}
    for name, count in broken.items():
        console().print(f"broken: {name} ({count} of {len(case.a)})", style="red", markup=False)
    if broken:
        raise typer.Exit(1)
    console().print("no rule is broken now")


@app.command()
def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of rows; default: every bench/*.jsonl."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path(
        "bench/report"
    ),
) -> None:
    """Tables and plots of recorded rows: index.html (needs no network), report.md, plots/.

    Rows of different machines or versions are kept apart. A line that is not a row is reported with
    its number and skipped.
    """
    check_folder(output)
    from matroot.bench import rows
    from matroot.bench.report import write

    paths = files or sorted(Path("bench").glob("*.jsonl"))
    if not paths:
        raise ValueError("no files of rows: name some, or run matroot bench paper first")
    found, complaints = [], []
    for path in paths:
        good, bad = rows.load(path)
        found += good
        complaints += bad
    _complain(complaints)
    with held(output, output / ".lock"), progress() as bar:
        task = bar.add_task("plots", total=None)
        written = write(
            found,
            complaints,
            output,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    plots = sum(path.suffix == ".svg" for path in written)
    console().print(
        f"{output / 'index.html'} written from {len(found)} rows: {plots} plots, also as PNG and "
        "SVG; report.md says the same",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Rows to compare with.")],
    b: Annotated[Path, typer.Argument(help="Rows that may be faster.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what lies within the noise.")
    ] = False,
) -> None:
    """Ratios of two files of rows, B over A, with a band of noise.

    The band runs from B's 20th over A's 80th percentile to B's 80th over A's 20th; only a ratio
    whose band leaves out 1 counts as faster or slower.
    """
    from matroot.bench import rows
    from matroot.bench.compare import changed_gates, changes, mean_ratio

    loaded = []
    for path in (a, b):
        found, complaints = rows.load(path)
        _complain(complaints)
        loaded.append(found)
    for line in rows.differences(loaded[0], loaded[1][0] if loaded[1] else {}):
        console().print(f"not the same environment: {line.replace('here', 'in B')}", markup=False)
    found_changes = changes(*loaded)
    if not found_changes:
        raise ValueError(f"{a} and {b} have no timed case and candidate in common")
    shown = [c for c in found_changes if everything or c.verdict != "within noise"]
    if shown:
        body = [
            (c.case, c.candidate, c.phase, f"{c.ratio:.2f}", f"{c.low:.2f}–{c.high:.2f}", c.verdict)
            for c in shown
        ]
        _show("B over A", ("case", "candidate", "phase", "ratio", "band", ""), body)
    for line in changed_gates(*loaded):
        console().print(line, style="red", markup=False, soft_wrap=True)
    counts = dict.fromkeys(("faster", "slower", "within noise"), 0)
    for change in found_changes:
        counts[change.verdict] += 1
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    console().print(
        f"{len(found_changes)} times compared: {summary}; geometric mean of B over A "
        f"{mean_ratio(found_changes):.3f}"
    )


def _abilities(known: Sequence[Row]) -> list[tuple[str, ...]]:
    """A line for each package; the table of every question is in the report, which is wider."""
    from matroot.bench import rows

    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row["candidate"] for row in known):
        own = rows.pick(known, candidate=name)
        failed = [row["probe"] for row in own if row["answer"] != "y"]
        can = f"{len(own) - len(failed)} of {len(own)}"
        lines.append((name, own[0]["version"] or "", can, ", ".join(failed)))
    return lines


def _settings(device: DeviceName, dtype: DtypeName, quick: bool) -> Settings:
    import torch

    from matroot.bench.cases import Settings

    if device is DeviceName.CUDA and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here")
    return Settings(torch.device(device.value), getattr(torch, dtype.value), quick)


def _default(what: str, settings: Settings) -> Path:
    quick = "-quick" if settings.quick else ""
    return Path("bench") / f"{what}-{settings.device.type}{quick}.jsonl"


def _chosen(only: str | None, known: dict[str, _T]) -> list[_T]:
    names = list(known) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--only: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names]


def _measure(found: Sequence[Case], path: Path, settings: Settings, *, fresh: bool) -> None:
    """Run the cases with a progress bar; Ctrl-C keeps finished cases."""
    check_file(path)
    with held(path, path.with_name(f".{path.name}.lock")):
        _measure_alone(found, path, settings, fresh=fresh)


def _measure_alone(found: Sequence[Case], path: Path, settings: Settings, *, fresh: bool) -> None:
    from matroot.bench import cases

    _begin(path, fresh=fresh)
    try:
        with progress(clock=True) as bar:
            task = bar.add_task("", total=None)
            for step in cases.run(found, path, settings):
                bar.update(task, description=step.title, completed=step.done, total=step.total)
    except KeyboardInterrupt:
        raise interrupted(
            f"what is finished stands in {path}, and the same command goes on from there"
        ) from None


def _begin(path: Path, *, fresh: bool) -> None:
    """Set an old file of rows aside, or say which of its lines are none."""
    from matroot.bench import cases, rows

    if fresh and (old := cases.set_aside(path)) is not None:
        console().print(f"the old file is now {old}", markup=False)
    if path.exists():
        _complain(rows.load(path)[1])


def _complain(complaints: Sequence[str]) -> None:
    for line in complaints:
        console().print(line, style="yellow", markup=False, soft_wrap=True)


def _show(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for name in head:
        table.add_column(name, overflow="fold")
    for line in body:
        # Text, so that brackets in a row are not read as markup.
        table.add_row(*(Text(cell) for cell in line))
    console().print(table)


def _point_to(path: Path) -> None:
    console().print(
        f"rows in {path}; matroot bench report {path} draws them", markup=False, soft_wrap=True
    )
