"""The table and the chart of ``bench ttft``, from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sa_compile.lab.bench.competitors import OURS
from sa_compile.lab.tokens import length_text

TITLES = {
    "eager": "eager",
    "flash2": "FlashAttention-2",
    "inductor": "Inductor",
    "flex": "FlexAttention",
    "rest": "without attention",
    "interface": "sampleattn, not compiled",
    "exact": "exact forms alone",
    OURS: "sampleattn",
}


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a length; each competitor's TTFT and how many times faster sampleattn is."""
    names = names_of([result])
    ours, baselines = [OURS], [name for name in names if name != OURS]
    headers = ["tokens", *(f"{TITLES[name]} (ms)" for name in [*baselines, *ours])]
    headers += [f"x {TITLES[name]}" for name in baselines] + ["peak GiB: " + " / ".join([*baselines, *ours])]
    headers += [f"peak / {TITLES[baselines[0]]}"] if baselines else []
    headers += [f"logits: off {TITLES[baselines[0]]}"] if baselines else []
    headers += ["density", "density is"]
    lines = []
    for length in dict.fromkeys((row["length"], row["batch"]) for row in result["rows"]):
        found = {row["competitor"]: row for row in result["rows"] if (row["length"], row["batch"]) == length}
        mine = found[OURS]
        line = [prompt_text(*length), *(_time(found.get(name)) for name in [*baselines, *ours])]
        line += [_ratio(found.get(name), mine, _goal(result, name, length[0])) for name in baselines]
        line += [" / ".join(_peak(found.get(name)) for name in [*baselines, *ours])]
        if baselines:
            # Random strips on random weights have nothing to do with what dense attention gives.
            difference = mine["difference"] if mine["density"] is None else None
            line += [_peak_ratio(mine, found[baselines[0]]), _share(difference)]
        line += [f"{mine['density']:.1%}" if mine["density"] is not None else "-", _source(mine)]
        lines.append(line)
    return f"{_caption(result)}\n\n" + tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def chart(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """PNG: one panel a model, TTFT over the prompt's length for every competitor, both logarithmic.

    Results of one call, compilation included, are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Model -> competitor and method -> length -> row; of several measurements the first.
    models: dict[str, dict[tuple[str, str], dict[int, dict[str, Any]]]] = {}
    for result in results:
        for row in result["rows"] if result["rounds"] else ():
            line = (row["competitor"], method_of(result) if row["competitor"] == OURS else "")
            if not row["error"]:
                models.setdefault(result["model"], {}).setdefault(line, {}).setdefault(row["length"], row)
    size = (4.6 * len(models), 3.8)
    figure, axes = pyplot.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    colour = {name: f"C{number}" for number, name in enumerate(TITLES)}
    for axis, (model, measured) in zip(axes[0], models.items(), strict=True):
        for name, method in sorted(measured, key=lambda line: (list(TITLES).index(line[0]), line[1])):
            points = sorted(measured[name, method].items())
            lengths, times = [at for at, _ in points], [row["ttft_ms"] / 1e3 for _, row in points]
            style: dict[str, Any] = {"linewidth": 2.5} if name == OURS else {}
            if method == "adaptive":
                style["linestyle"] = "--"
            label = f"{TITLES[name]}, {method}" if method else TITLES[name]
            axis.plot(lengths, times, marker="o", color=colour[name], label=label, **style)
        axis.set(xscale="log", yscale="log", title=model, xlabel="prompt (tokens)")
        ticks = sorted({length for rows in measured.values() for length in rows})
        axis.set_xticks(ticks, [length_text(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    axes[0][0].set_ylabel("time to first token (s)")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def names_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """The competitors that results have rows of, in the order of :data:`TITLES`."""
    return [name for name in TITLES if any(r["competitor"] == name for x in results for r in x["rows"])]


def method_of(result: dict[str, Any]) -> str:
    """The selection method of sampleattn; results of commits whose default was 'chunked' do not say it."""
    return str(result.get("method", "chunked"))


def _caption(result: dict[str, Any]) -> str:
    row = result["rows"][0]
    parts = [f"{result['model']}, {result['dtype']}, {result['device']}", f"{result['weights']} weights"]
    parts.append(f"method {method_of(result)!r}")
    if row["layers"] != row["all_layers"]:
        parts.append(f"{row['layers']} layers measured, times scaled to all {row['all_layers']}")
    if result["narrow"]:
        parts.append("narrowed: not the model's width")
    if result["chunked_mlp"]:
        parts.append(f"MLPs in chunks of {result['chunked_mlp']} tokens")
    if result["rounds"] == 0:
        parts.append("one call, compilation included")
    versions = result["versions"]
    parts.append(
        ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    )
    return "; ".join(parts) + (f". {result['note']}" if result["note"] else ".")


def prompt_text(length: int, batch: int) -> str:
    """A prompt's length as tables have it: 32K, 1M, 2 x 8K."""
    text = length_text(length)
    return text if batch == 1 else f"{batch} x {text}"


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return row["error"] or f"{row['ttft_ms']:,.1f}"


def _goal(result: dict[str, Any], name: str, length: int) -> float | None:
    return result["goals"][name][result["lengths"].index(length)] if name in result["goals"] else None


def _ratio(row: dict[str, Any] | None, ours: dict[str, Any], wanted: float | None) -> str:
    if row is None or row["error"] or ours["error"]:
        return "-"
    found = row["ttft_ms"] / ours["ttft_ms"]
    if not wanted:  # 0: none at this length
        return f"{found:.2f}"
    return f"{found:.2f} (>= {wanted:g}{'' if found >= wanted else ': missed'})"


def _source(ours: dict[str, Any]) -> str:
    """Where the density comes from; an exact prefill has none."""
    exact = ours["outcomes"] and "sampled" not in ours["outcomes"]
    return "exact: nothing is sampled" if exact else ours["density_source"]


def _peak_ratio(ours: dict[str, Any], row: dict[str, Any]) -> str:
    return (
        f"{ours['peak_bytes'] / row['peak_bytes']:.2f}" if ours["peak_bytes"] and row["peak_bytes"] else "-"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _peak(row: dict[str, Any] | None) -> str:
    return "-" if row is None or row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
