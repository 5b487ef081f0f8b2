"""Draw the picture of docs/index.md and README.md and write the table of docs/choosing.md.

python benchmarks/overview.py   from the rows in benchmarks/results, without measuring anything
"""

from pathlib import Path

from numerics import IMAGES, ROOT, ROWS, figure, fill, load, number, table

from matroot.bench.rows import Row

PEERS = ROOT / "benchmarks/results/peers-cpu.jsonl"
PAGE = ROOT / "docs/choosing.md"
OURS, OTHERS = "#1b7f5c", "#8a8f98"
LONGEST = 100
NAMES = {
    "eigh by hand": "eigh, gradient by hand",
    "eigh, differentiated by PyTorch": "eigh and autograd",
    "torch.linalg.matrix_sqrth": "torch matrix_sqrth",
    "MPA-Lya (paper)": "Padé, as published",
    "linear_operator CIQ": "linear_operator",
}


def gain_plot(rows: list[Row], path: Path) -> None:
    """Time and error of root and gradient, of every package that has a gradient."""
    shape = {"experiment": "speed", "root": "sqrt", "batch": 256, "n": 64, "dtype": "float32"}
    measured = [
        row
        for row in rows
        if shape.items() <= row.items() and row["cond"] == 1e4 and row["gradient_error"] is not None
    ]
    measured.sort(key=lambda row: -row["ms"]["both"][0])
    names = [NAMES.get(row["candidate"], row["candidate"]) for row in measured]
    colors = [OURS if name == "matroot" else OTHERS for name in names]
    times = [row["ms"]["both"][0] for row in measured]
    errors = [row["gradient_error"] for row in measured]
    fig = figure(6.6, 4.2)
    fig.suptitle("Root and gradient of 256 matrices of 64×64, κ = 10⁴, float32", size=12)
    time, error = fig.subplots(1, 2, sharey=True)
    time.barh(names, times, color=colors, height=0.6)
    time.set_title("time, ms", size=10)
    time.set_xlim(0, LONGEST * 1.12)
    error.hlines(names, 1e-7, errors, color=colors, linewidth=1.5)
    error.scatter(errors, names, color=colors, s=45, zorder=3)
    error.set_title("relative error of the gradient", size=10)
    error.set(xscale="log", xlim=(1e-7, 30))
    for i, (ms, e) in enumerate(zip(times, errors, strict=True)):
        style = {"va": "center", "weight": "bold" if colors[i] == OURS else "normal", "size": 9}
        # What is longer than the axis goes on beyond its end.
        at, shown, color = (
            (ms, f"{ms:.0f}", "black") if ms < LONGEST else (84, f"{ms:,.0f} →", "white")
        )
        offset = {"xytext": (5, 0), "textcoords": "offset points"}
        time.annotate(shown, (at, i), color=color, **offset, **style)
        error.annotate(f"{e:.0e}", (e, i), xytext=(7, 0), textcoords="offset points", **style)
    for axes in (time, error):
        axes.spines[:].set_visible(False)
        axes.tick_params(bottom=False, left=False, labelbottom=False, which="both")
    time.get_yticklabels()[names.index("matroot")].set_weight("bold")
    fig.savefig(path, metadata={"Date": None})


def ill_conditioned_table(rows: list[Row]) -> str:
    """Errors at κ = 1e6, eigenvalues evenly spaced in logarithm."""
    shape = {"kind": "accuracy", "dtype": "float32", "n": 64, "cond": 1e6}
    choices = {
        "default on a CPU (compiled kernels)": "default",
        '`method="minimax", backend="torch"`': "minimax",
        "`torch.linalg.eigh` in float32, by hand": "eigh",
        "`Pade()` as published": "pade (as published)",
        "`NewtonSchulz()` as published": "newton_schulz (as published)",
        "`Taylor()` as published": "taylor (as published)",
    }
    body = []
    for name, choice in choices.items():
        line = [name]
        for root in ("sqrt", "inv_sqrt"):
            found = [
                row
                for row in rows
                if (shape | {"choice": choice, "root": root}).items() <= row.items()
                and row["spectrum"] == "log"
            ]
            line += [number(max(row[key] for row in found)) for key in ("error", "gradient_error")]
        body.append(line)
    head = ["method", "root", "its gradient", "inverse root", "its gradient"]
    return table(head, body)


def main() -> None:
    """Write both."""
    gain_plot(load(PEERS), IMAGES / "gain.svg")
    page = PAGE.read_text(encoding="utf-8")
    text = ill_conditioned_table(load(ROWS))
    PAGE.write_text(fill(page, "ill-conditioned", text), encoding="utf-8")


if __name__ == "__main__":
    main()
