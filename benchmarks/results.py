"""Prints the tables of docs/results.md, evidence.md and choices.md, and draws the first's pictures.

    python -m benchmarks.results --out docs

reads the runs that are committed, benchmarks/studies/STUDY/runs.csv; `otter-jax study` wrote them.
"""

import argparse
import csv
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
STUDIES = pathlib.Path(__file__).parent / "studies"
NAMES = {
    "ridge": "ridge (closed form)",
    "cca": "CCA (closed form)",
    "infonce": "InfoNCE",
    "ls": "LS",
    "kd": "KD",
    "siglip": "SigLIP",
    "softclip": "SoftCLIP-like",
    "small_loss": "small loss",
    "otter": "OTTER",
    "trust": "**trust**",
    "trust_siglip": "**trust + SigLIP**",
    "small_loss_otter": "**small loss + OTTER**",
    "trust_otter": "**trust + OTTER**",
    "trust_otter_half": f"**trust + OTTER, {ALPHA} = .5**",
}
BASELINES = [name for name, shown in NAMES.items() if "**" not in shown]
CHANGES = {  # the rows of ablations.toml
    "lambda_0_03": "OTTER, λ = .03",
    "lambda_0_05": "λ = .05",
    "lambda_0_08": "λ = .08",
    "lambda_0_3": "λ = .3",
    "iterations_1": "1 iteration",
    "iterations_100": "100 iterations",
    "alpha_0_2": f"{ALPHA} = .2",
    "alpha_0_8": f"{ALPHA} = .8",
    "alpha_0_95": f"{ALPHA} = .95",
    "no_images": "no image-image similarity",
    "no_texts": "no text-text similarity",
    "cross_alone": "image-text similarity alone",
    "within_alone": "no image-text similarity",
    "ema_0_9": "EMA .9",
    "ema_0_99": "EMA .99",
    "fixed_negatives": "no gradient through negatives",
    "otter_released": "OTTER as released, 8 processes",
    "kd_released": "KD as released",
    "trust_temperature_0_05": "trust, temperature .05",
    "trust_temperature_0_2": "trust, temperature .2",
    "trust_temperature_0_3": "trust, temperature .3",
    "trust_transport": "trust by transport",
    "trust_otter_limit_4": "trust + OTTER, weights up to 4",
    "trust_ls": "trust + LS",
    "trust_kd": "trust + KD",
    "trust_softclip": "trust + SoftCLIP-like",
    "trust_otter_alpha_0_5": f"trust + OTTER, {ALPHA} = .5",
    "trust_otter_alpha_0_95": f"trust + OTTER, {ALPHA} = .95",
    "trust_ema_0_99": "trust, EMA .99",
}
LENGTHS = {  # the rows of lengths.toml
    f"{name}{end}": f"{NAMES[name]}, {steps} steps"
    for end, steps in (("_short", "100"), ("", "400"), ("_long", "1,600"))
    for name in ("infonce", "softclip", "small_loss", "otter", "trust_otter", "trust_otter_half")
}
NUMBERS = {  # of pairs_cpu.toml and pairs_cpu_starts.toml
    "infonce_low": "InfoNCE, from exp(1.6)",
    "small_loss_low": "small loss, from exp(1.6)",
    "otter_low": "OTTER, from exp(1.6)",
    "trust_low": "**trust, from exp(1.6)**",
    "trust_otter_low": "**trust + OTTER, from exp(1.6)**",
    "trust_otter_a95": f"**trust + OTTER, {ALPHA} = .95**",
    "trust_otter_l3": "**trust + OTTER, λ = .3**",
    "trust_otter_t3": "**trust + OTTER, trust's temperature .3**",
}
FACTORS = {  # of factors.toml and, last, crops.toml: batch and method's ending, and what that is
    (128, ""): "128, ten epochs: 456 steps",
    (128, "_low"): "the same, rate 3e-3, from exp(1.6)",
    (512, "_crops"): "512, 35 epochs: 400 steps, rate 3e-3, from exp(1.6)",
}
PAGE = ("ridge", "infonce", "ls", "kd", "siglip", "softclip", "small_loss", "otter", "trust",
        "trust_otter")  # fmt: skip
DRAWN = ("val/name@10", "seen/name@1", "unseen/name@10")
HITS = tuple(f"{kind}/name@{k}" for kind in ("val", "seen", "unseen") for k in (1, 5, 10))
MEASURES = ("val/name@5", "val/name@10", "seen/name@1", "seen/name@5", "seen/name@10",
            "unseen/name@5", "unseen/name@10", "unseen/tags@5")  # fmt: skip
HEADINGS = ("val @5", "@10", "seen @1", "@5", "@10", "unseen @5", "@10", "tags @5")
HEADS = tuple(
    f"{kind}_noise{n}_share1_batch512" for kind in ("emoji", "both") for n in (0, 0.2, 0.5)
)

MINUS = "\N{MINUS SIGN}"

Runs = dict[tuple[str, str], dict[str, np.ndarray]]  # {(setting, method): {measure: by seed}}


def read(study: str, weights: str = "ema") -> Runs:
    """Returns the main runs of a study in the order of their seeds."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    with (STUDIES / study / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["weights"] == weights:
                own = found.setdefault((row["setting"], row["method"]), {})
                for name in row:
                    if "@" in name:
                        own.setdefault(name, []).append(float(row[name] or "nan"))
    return {key: {k: np.array(v) for k, v in own.items()} for key, own in found.items()}


def settings_of(runs: Runs) -> list[str]:
    """Returns the settings of runs in their order."""
    return list(dict.fromkeys(setting for setting, _ in runs))


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Returns the mean difference of runs paired by seed, and half its 95 % interval."""
    difference = a - b
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    return float(difference.mean()), float(half)


def told_difference(mean: float, half: float) -> str:
    """Writes a mean difference and half its interval."""
    return f"{mean:+.3f} ± {half:.3f}".replace("0.", ".").replace("-", MINUS)


def short(value: float) -> str:
    """Writes a share of 1 with three digits."""
    return f"{value:.3f}".replace("0.", ".", 1).replace("-", MINUS)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Writes a table of Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---")


def compared(
    runs: Runs, columns: list[tuple[str, str]], base: str, names: dict[str, str] = NAMES | CHANGES
) -> list[list[str]]:
    """Returns a row for each method: its means in the columns, which are settings and measures.

    Bold is the largest of a column; + and − are above and below `base` by the interval. Rows are
    in the order of `names`.
    """
    settings = {setting for setting, _ in columns}
    there = dict.fromkeys(method for setting, method in runs if setting in settings)
    methods = sorted(there, key=[*names, *there].index)
    means = {
        (m, c): runs[c[0], m][c[1]].mean() for m in methods for c in columns if (c[0], m) in runs
    }
    rows = []
    for m in methods:
        cells = []
        for c in columns:
            if (m, c) not in means:
                cells.append("")
                continue
            best = round(means[m, c], 3) == round(
                max(v for (_, k), v in means.items() if k == c), 3
            )
            text = f"**{short(means[m, c])}**" if best else short(means[m, c])
            if m != base:
                mean, half = paired(runs[c[0], m][c[1]], runs[c[0], base][c[1]])
                text += "+" if mean > half else MINUS if mean < -half else ""
            cells.append(text)
        rows.append([names.get(m, m.replace("_", " ")), *cells])
    return rows


def against_best(runs: Runs, setting: str, method: str) -> list[str]:
    """Returns how far a method is from the best baseline of each measure, with its interval."""
    there = [name for name in BASELINES if (setting, name) in runs]
    cells = []
    for name in MEASURES:
        best = max(there, key=lambda b, name=name: runs[setting, b][name].mean())
        mean, half = paired(runs[setting, method][name], runs[setting, best][name])
        text = told_difference(mean, half)
        cells.append(f"**{text}**" if mean > half else text)
    return cells


def counts(runs: Runs, settings: tuple[str, ...], method: str, other: str) -> str:
    """Says in how many columns of names a method is above, level with and below another.

    In brackets: in how many of them it is above with Bonferroni's correction for all of them.
    """
    cells = [(runs[s, method][name], runs[s, other][name]) for s in settings for name in HITS]
    above = [(a, b) for a, b in cells if np.greater(*paired(a, b))]
    below = [(a, b) for a, b in cells if np.greater(*paired(b, a))]
    sure = sum(stats.ttest_rel(a, b).pvalue < 0.05 / len(cells) for a, b in above)
    return f"{len(above)} ({sure}), {len(cells) - len(above) - len(below)}, {len(below)}"


def noise_of(setting: str) -> float:
    """Returns the share of captions that a setting exchanges."""
    return float(setting.split("_")[1].removeprefix("noise"))


def told_noise(setting: str) -> str:
    """Says that share."""
    return f"{noise_of(setting):.0%}".replace("%", " %")


def told(setting: str) -> str:
    """Says a setting in a few words."""
    kind, _, share, batch = setting.split("_")
    words = [kind, told_noise(setting)]
    words += [{"share0.5": "half", "share0.125": "an eighth"}[share]] if share != "share1" else []
    words += [f"batch {batch[5:]}"] if batch != "batch512" else []
    return ", ".join(words)


def draw_noise(rows: list[tuple[str, Runs, Sequence[str]]], path: pathlib.Path) -> None:
    """Draws hits over wrong captions; each row has a title, runs, and settings."""
    styles = {
        "infonce": ("#000000", "o", "InfoNCE"),
        "otter": ("#0072b2", "s", "OTTER"),
        "small_loss": ("#e69f00", "D", "small loss"),
        "trust": ("#009e73", "v", "trust"),
        "trust_otter": ("#d55e00", "^", "trust + OTTER"),
    }
    figure = Figure((9.6, 2.6 * len(rows) + 0.4), layout="constrained")
    panels_of = figure.subplots(len(rows), len(DRAWN), sharex=True)
    for panels, (title, runs, settings) in zip(panels_of, rows, strict=True):
        for axes, measure in zip(panels, DRAWN, strict=True):
            for name in [*[b for b in BASELINES if b not in styles], *styles]:
                colour, marker, label = styles.get(name, ("#b0b0b0", "", "other baselines"))
                own = [runs[s, name][measure] for s in settings if (s, name) in runs]
                at = [noise_of(s) for s in settings if (s, name) in runs]
                if len(own) > 1:  # of one alone there is no line
                    axes.errorbar(
                        at, [x.mean() for x in own], [stats.sem(x) for x in own], color=colour,
                        marker=marker, markersize=5, linewidth=1.8 if marker else 0.9, label=label,
                    )  # fmt: skip
            axes.set_title(f"{title}: {measure.replace('/name', ' name')}", fontsize=9.5)
            axes.set_xticks([0, 0.2, 0.5], ["0", "20 %", "50 %"])
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.3)
            if title == rows[-1][0]:
                axes.set_xlabel("captions exchanged")
    handles, names = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(once.values(), once, loc="outside lower center", frameon=False, ncols=len(once))
    figure.savefig(path, dpi=130)


def draw_differences(heads: Runs, path: pathlib.Path) -> None:
    """Draws how far each method is from InfoNCE, with its interval: heads, emoji."""
    shown = {"none": ("#56b4e9", "o"), "20 %": ("#009e73", "s"), "50 %": ("#d55e00", "^")}
    methods = [name for name in NAMES if name not in ("infonce", "ridge", "cca")]
    figure = Figure((9.6, 5.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 3, sharey=True), DRAWN, strict=True):
        for nth, (setting, (wrong, (colour, marker))) in enumerate(
            zip(HEADS[:3], shown.items(), strict=True)
        ):
            base = heads[setting, "infonce"][measure]
            found = [paired(heads[setting, name][measure], base) for name in methods]
            at = [row + 0.22 * (nth - 1) for row in range(len(methods))]
            axes.errorbar(
                [mean for mean, _ in found], at, xerr=[half for _, half in found], fmt=marker,
                color=colour, markersize=4.5, linewidth=1.4, label=wrong,
            )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.9)
        axes.set_title(measure.replace("/name", " name"), fontsize=9.5)
        axes.set_yticks(range(len(methods)), [NAMES[name].strip("*") for name in methods])
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    figure.axes[1].set_xlabel("more than InfoNCE (mean over ten seeds, 95 % interval)")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False,
        ncols=3, title="captions exchanged",
    )  # fmt: skip
    figure.savefig(path, dpi=130)


def page_tables(studies: dict[str, tuple[Runs, Sequence[str]]]) -> None:
    """Prints the tables of results.md: methods of PAGE that were run in all settings of a study."""
    measures = ("seen/name@1", "seen/name@10", "unseen/name@10")
    for title, (runs, settings) in studies.items():
        methods = [m for m in PAGE if all((s, m) in runs for s in settings)]
        kept = {(s, m): runs[s, m] for m in methods for s in settings}
        columns = [(s, name) for name in measures for s in settings]
        head = [f"{name.replace('/name', ' ')}, {told_noise(s)}" for s, name in columns]
        print(f"\n**{title}**\n")
        print(table(["method", *head], compared(kept, columns, "infonce")))


def heads_tables(heads: Runs) -> None:
    """Prints what each method finds with heads."""
    for name in ("seen/name@1", "seen/name@10", "unseen/name@10", "val/name@10"):
        print(f"\n**{name}**\n")
        rows = compared(heads, [(setting, name) for setting in HEADS], "infonce")
        print(table(["method", *map(told, HEADS)], rows))


def ours_tables(heads: Runs, crops: Runs, both: Runs) -> None:
    """Prints how far methods of ours are from the best baseline, and in how many columns."""
    for ours in ("trust", "trust_otter", "trust_otter_half"):
        print(f"\n{NAMES[ours]} against the best baseline of each column\n")
        rows = [[told(s), *against_best(heads, s, ours)] for s in HEADS]
        for title, runs in (("last block", crops), ("pairs:cpu", both)):
            there = [s for s in settings_of(runs) if (s, ours) in runs]
            rows += [[f"{title}, {told(s)}", *against_best(runs, s, ours)] for s in there]
        print(table(["setting", *HEADINGS], rows))
        print("\n**in how many columns of names it is above, level and below**\n")
        others = [name for name in NAMES if name != ours]
        rows = [
            [title, *(counts(heads, settings, ours, name) for name in others)]
            for title, settings in (("wrong captions", HEADS[1:]), ("clean emoji", HEADS[:1]))
        ]
        head = f"{NAMES[ours].strip('*')} against"
        print(table([head, *(NAMES[name] for name in others)], rows))


def trained_tables(studies: dict[str, Runs]) -> None:
    """Prints what each method finds with the last block trained, in each setting of each study."""
    names = NAMES | NUMBERS | {"infonce_short": LENGTHS["infonce_short"]}
    for title, runs in studies.items():
        for setting in settings_of(runs):
            print(f"\n**{title}, {told(setting)}**\n")
            columns = [(setting, name) for name in MEASURES]
            print(table(["method", *HEADINGS], compared(runs, columns, "infonce", names)))


def factors_table(factors: Runs, crops: Runs) -> None:
    """Prints trust and trust + OTTER in other batches, lengths, rates and starts."""
    runs = factors | {(s, f"{method}_crops"): found for (s, method), found in crops.items()}
    rows = []
    for (batch, end), words in FACTORS.items():
        setting, cells = f"emoji_noise0.5_share1_batch{batch}", [words]
        for name in ("val/name@10", "seen/name@1", "seen/name@10"):
            ours, trust = (runs[setting, m + end][name] for m in ("trust_otter", "trust"))
            cells.append(f"{short(trust.mean())}, {short(ours.mean())}")
            cells.append(told_difference(*paired(ours, trust)))
        rows.append(cells)
    print("\n**batch, length, rate and start**: trust, trust + OTTER\n")
    head = [x for name in ("val @10", "seen @1", "seen @10") for x in (name, "difference")]
    print(table(["batches of", *head], rows))


def choices_tables(sizes: Runs, ablations: Runs, lengths: Runs) -> None:
    """Prints batches and shares, what each choice is worth, and how long to train."""
    settings = settings_of(sizes)
    for name in ("seen/name@1", "unseen/name@10"):
        print(f"\n**{name}, batches and shares**\n")
        for noise in ("0", "0.2", "0.5"):
            own = [s for s in settings if s.split("_")[1] == f"noise{noise}"]
            rows = compared(sizes, [(s, name) for s in own], "infonce")
            print(table(["method", *map(told, own)], rows), end="\n\n")
    columns = [
        (s, name) for s in settings_of(ablations) for name in ("seen/name@1", "unseen/name@10")
    ]
    head = [f"{told(s)}: {name.replace('/name', ' ')}" for s, name in columns]
    print("\n**what each choice is worth**, against OTTER\n")
    print(table(["changed", *head], compared(ablations, columns, "otter")))
    settings = sorted({s for s, _ in lengths}, key=lambda s: ("_share1_" not in s, told(s)))
    for measures in (("seen/name@1", "unseen/name@10"), ("val/name@10", "seen/name@10")):
        columns = [(s, name) for s in settings for name in measures]
        head = [f"{told(s)}: {name.replace('/name', ' ')}" for s, name in columns]
        print("\n**how long to train**\n")
        print(table(["method", *head], compared(lengths, columns, "infonce", LENGTHS)))


def main() -> None:
    """Prints all tables, draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default="docs", help="folder for the pictures")
    options = parser.parse_args()
    heads, crops, both = map(read, ("heads", "crops", "pairs_cpu"))
    pairs = settings_of(both)
    page_tables(
        {
            "as pairs:cpu trains, both": (both, pairs),
            "last block, emoji": (crops, HEADS[:3]),
            "heads, emoji": (heads, HEADS[:3]),
        }
    )
    heads_tables(heads)
    ours_tables(heads, crops, both)
    others = {"no crops": "blocks", "on emoji": "pairs_cpu_emoji", "30 epochs": "pairs_cpu_long"}
    others |= {"other starts": "pairs_cpu_starts"}
    others = {title: read(study) for title, study in others.items()}
    trained_tables({"crops": crops, "pairs:cpu": both} | others)
    factors_table(read("factors"), crops)
    choices_tables(*map(read, ("sizes", "ablations", "lengths")))
    rows = [
        ("heads, emoji", heads, HEADS[:3]),
        ("heads, both sets", heads, HEADS[3:]),
        ("last block, crops, emoji", crops, HEADS[:3]),
        ("pairs:cpu, both sets", both, pairs),
    ]
    draw_noise(rows, options.out / "results_noise.png")
    draw_differences(heads, options.out / "results_differences.png")


if __name__ == "__main__":
    main()
