"""The page of a report says what report.json says, and nothing in it becomes markup."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from service.report.page import report_page
from service.report.pictures import block_of, kind_of
from service.report.view import ReportView
from tests.fixtures.browser import NewPage, serious_faults

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "'; alert(1); '",
    "<!--",
    "\u2028</style>",
    "javascript:alert(1)",
)


def measured(perplexity: float, ratio: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"perplexity": perplexity, "standard_error": 0.25}
    return found if ratio is None else {**found, "ratio": ratio, "ratio_standard_error": 0.0125}


def layer(name: str, **form: Any) -> dict[str, Any]:
    shape = {"name": name, "in_features": 64, "out_features": 32}
    return {**shape, "rank": None, "bits": None, "bytes": 4096, "parameters": 2048, **form}


def a_report(layers: int = 4, text: str = "held-out", name: str = "keep-0.6") -> dict[str, Any]:
    """A report of a small model, with these names in it."""
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(layers)]
    return {
        "job": {"id": "job-1", "name": name},
        "model": {
            "source": {"source": "local", "path": f"/models/{name}"},
            "architecture": "LlamaForCausalLM",
            "parameters": 1_000_000,
            "dense_bytes": 2_000_000,
            "dtype": "bfloat16",
        },
        "method": "impact-kron",
        "calibration": {
            "sequences": 96,
            "sequence_length": 256,
            "tokens": 24_576,
            "documents": 545,
        },
        "evaluation": {
            "dense": {
                "perplexity": {text: measured(10.5)},
                "decode_tokens_per_second": 20.0,
                "continuations": [f"{name} dense"],
            },
            "prompts": [f"{name} prompt"],
        },
        "targets": [
            {
                "name": name,
                "size": {
                    "bytes": 1_200_000,
                    "parameters": 600_000,
                    "linear_bytes_fraction": 0.6,
                    "linear_fraction": 0.6,
                },
                "perplexity": {text: measured(14.7, 1.4)},
                "decode_tokens_per_second": 19.0,
                "continuations": [f"{name} cut"],
                "layers": [
                    layer(each, rank=8, bytes=1024, parameters=512) if number % 2 else layer(each)
                    for number, each in enumerate(names)
                ],
            }
        ],
        "curve": [
            {"kind": "dense", "name": None, "linear_fraction": 1.0, "perplexity": {text: 10.5}},
            {"kind": "target", "name": name, "linear_fraction": 0.6, "perplexity": {text: 14.7}},
        ],
        "spectra": [{"name": each, "ranks": [1, 8, 32], "kept": [0.3, 0.8, 1.0]} for each in names],
        "seconds": {"calibrate": 100.0, "solve": 20.0},
    }


class Elements(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_verdict_says_what_was_gained_and_lost() -> None:
    (verdict,) = ReportView.of(a_report()).verdicts
    assert verdict.text == (
        "60% of the size: 1.2 MB instead of 2 MB; perplexity 40% higher on held-out; "
        "writes text at 0.95 of the original's speed."
    )


def test_every_number_of_the_tables_is_the_report_s() -> None:
    view = ReportView.of(a_report())
    rows = {row.label: row.cells for table in view.tables for row in table.rows}
    dense, made = rows["perplexity, held-out"]
    assert dense is not None
    assert made is not None
    assert (dense.text, dense.note) == ("10.500", "± 0.25")
    assert (made.text, made.note) == ("14.700", "1.400× ± 0.013")
    assert [cell and cell.text for cell in rows["weights"]] == ["2 MB", "1.2 MB"]
    assert [cell and cell.text for cell in rows["parameters"]] == ["1,000,000", "600,000"]
    assert [cell and cell.text for cell in rows["tokens written per second"]] == ["20.0", "19.0"]
    page = Elements(report_page(a_report())).text
    for row in rows.values():
        assert all(cell is None or cell.text in page for cell in row)


def a_recovered_report() -> dict[str, Any]:
    """Two targets of one size; the first has gained by training, the second one has not."""
    report = a_report()
    (target,) = report["targets"]
    checks = [[0, 0.5], [4, None], [5, -1e-9], [6, 0.0], [8, 0.25], [9, 0.375]]
    target["recovery"] = {
        "checks": checks,
        "divergence_before": 0.5,
        "divergence_after": 0.25,
        "kept_step": 8,
        "perplexity_before": {"held-out": 21.0},
        "seconds": 125.5,
        "steps": 9,
    }
    gained = {"checks": [[0, 0.5], [9, 0.75]], "divergence_after": 0.5, "kept_step": 0}
    other = {"name": "other", "recovery": target["recovery"] | gained, "perplexity": {}}
    report["targets"].append(target | other)
    point = {"linear_fraction": 0.6}
    report["curve"] += [
        point | {"kind": "target", "name": "other", "perplexity": {"held-out": 21.5}},
        point | {"kind": "probe", "name": None, "perplexity": {"held-out": 21.0}},
        point | {"kind": "probe", "name": None, "perplexity": {"held-out": 22.0}},
    ]
    return report


def test_what_training_has_regained_is_said() -> None:
    view = ReportView.of(a_recovered_report())
    assert "perplexity 40% higher on held-out (100% higher before recovery)" in (
        view.verdicts[0].text
    )
    rows = {
        row.label: [cell and cell.text for cell in row.cells]
        for table in view.tables
        if table.heading == "Recovery"
        for row in table.rows
    }
    assert rows == {
        "perplexity before recovery, held-out": [None, "21.000", "21.000"],
        "divergence before recovery": [None, "0.5000", "0.5000"],
        "divergence after recovery": [None, "0.2500", "0.5000"],
        "steps of training": [None, "9", "9"],
        "weights are those after step": [None, "8", "0"],
        "time of training": [None, "2 min 5 s", "2 min 5 s"],
    }
    assert view.recovery is not None
    assert [(each.label, each.points) for each in view.recovery.series] == [
        ("keep-0.6", ((0, 0.5), (8, 0.25), (9, 0.375))),
        ("other", ((0, 0.5), (9, 0.75))),
    ]
    assert dict(view.settings)["recovery"].startswith("9 steps")
    assert ReportView.of(a_report()).recovery is None


def test_a_target_before_its_recovery_has_a_place_of_its_own() -> None:
    view = ReportView.of(a_recovered_report())
    assert view.curve is not None
    made, cut = view.curve.series
    assert made.names == ("keep-0.6", "other", "probe", "dense")
    assert (cut.label, cut.points, cut.names) == (
        "held-out, before recovery",
        ((0.6, 21.0),),
        ("keep-0.6",),
    )


def test_errors_are_in_the_unit_of_what_they_are_of() -> None:
    report = a_report()
    (target,) = report["targets"]
    measured = {"accuracy": 0.5, "difference": -0.125, "difference_standard_error": 0.0125}
    target["accuracy"] = {"held-out": measured}
    report["evaluation"]["dense"]["accuracy"] = {
        "held-out": {"accuracy": 0.625, "standard_error": 0.025}
    }
    rows = {row.label: row.cells for each in ReportView.of(report).tables for row in each.rows}
    notes = [cell and (cell.text, cell.note) for cell in rows["accuracy, held-out"]]
    assert notes == [("62.50%", "± 2.50%"), ("50.00%", "-12.50% ± 1.25%")]


def test_steps_are_in_the_order_in_which_they_ran() -> None:
    report = a_report() | {"seconds": {"assemble": 2.5, "calibrate": 61.0, "new": 1.0}}
    times = dict(ReportView.of(report).settings)["time"]
    assert times == "1 min 4 s: calibrate 1 min 1 s, assemble 2.5 s, new 1.0 s"


def test_pictures_have_the_report_s_numbers() -> None:
    view = ReportView.of(a_report())
    assert view.curve is not None
    low, dense = view.curve.series[0].points
    assert (low[:2], dense) == ((0.6, 14.7), (1.0, 10.5, 0.0))
    assert low[2] == pytest.approx(14.7 / 1.4 * 0.0125)  # the error of the change
    assert view.curve.series[0].names == ("keep-0.6", "dense")
    (kept,) = view.kept
    assert [(cell.block, cell.kept, cell.words) for cell in kept.rows[0].cells[:2]] == [
        (0, 1.0, "dense, 4.1 kB"),
        (1, 0.25, "rank 8, 1.02 kB"),
    ]
    assert kept.rows[0].dense == 2
    assert view.spectra[0].series[0].points == ((1, 0.3), (8, 0.8), (32, 1.0))


def test_sizes_are_beside_the_dense_layers_in_the_artifact_s_own_precision() -> None:
    """Artifacts of GGUF files are in float32 by default: bytes are not those of 16 bits."""
    report = a_report()
    target = report["targets"][0]
    target["size"]["linear_bytes_fraction"] = 1.2
    for each in target["layers"]:
        each["bytes"] *= 2
    view = ReportView.of(report)
    assert view.curve is not None
    assert view.curve.series[0].points[0][0] == 0.6
    assert [cell.kept for cell in view.kept[0].rows[0].cells[:2]] == [1.0, 0.25]
    for each in target["layers"]:
        each |= {"rank": None, "bits": 4, "bytes": 1024}
    target["size"]["linear_bytes_fraction"] = 0.25
    view = ReportView.of(report)
    assert view.curve is not None
    assert view.curve.series[0].points[0][0] == 0.25
    assert {cell.kept for cell in view.kept[0].rows[0].cells} == {0.25}


def parts_of(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a report."""
    if path:
        yield path
    if isinstance(part, dict | list):
        for name, inner in part.items() if isinstance(part, dict) else enumerate(part):
            yield from parts_of(inner, (*path, name))


def without(report: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    copied = deepcopy(report)
    part: Any = copied
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return copied


def test_a_report_of_another_version_is_shown_without_what_it_lacks() -> None:
    report = a_recovered_report()
    report["targets"][0]["tasks"] = {"arc": {"metrics": {"acc": {"value": 0.5}}}}
    paths = [*parts_of(report)]
    assert ("targets", 0, "layers", 0, "in_features") in paths
    for path in paths:
        ReportView.of(without(report, path))
    for field in ("in_features", "rank", "bytes", "name", "bits", "parameters", "out_features"):
        older = a_report()
        for each in older["targets"][0]["layers"]:
            del each[field]
        assert "60% of the size" in Elements(report_page(older)).text


def test_the_source_is_named_so_that_one_finds_it() -> None:
    report = a_report()
    report["model"] |= {"source_format": "gguf", "source_bytes": 98_362_432}
    report["model"]["source"] = {"source": "hub", "id": "team/model", "revision": "abc"}
    view = ReportView.of(report)
    assert view.remark is not None
    assert "98.4 MB" in view.remark
    assert dict(view.settings)["model"].startswith("team/model at abc (LlamaForCausalLM")


def test_what_the_models_write_stands_side_by_side() -> None:
    (each,) = ReportView.of(a_report()).continued
    assert each.prompt == "keep-0.6 prompt"
    assert each.written == (("dense", "keep-0.6 dense"), ("keep-0.6", "keep-0.6 cut"))


@pytest.mark.parametrize(
    ("name", "kind", "block"),
    [
        ("model.layers.11.self_attn.q_proj", "self_attn.q_proj", 11),
        ("model.layers.3.mlp.experts.7.w1", "experts.w1", 3),
        ("model.layers.3.mlp.shared_expert.w1", "shared_expert.w1", 3),
        ("lm_head", "lm_head", 0),
    ],
)
def test_layers_are_told_apart_by_kind_and_block(name: str, kind: str, block: int) -> None:
    assert (kind_of(name), block_of(name)) == (kind, block)


def test_experts_are_shown_by_their_median() -> None:
    report = a_report()
    report["targets"][0]["layers"] = [
        layer(f"model.layers.0.mlp.experts.{number}.w1", rank=8, parameters=512 * (number + 1))
        for number in range(3)
    ]
    (kept,) = ReportView.of(report).kept
    assert [(cell.kept, cell.words) for cell in kept.rows[0].cells] == [
        (0.5, "median of 3 experts, 25% to 75%")
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_name_becomes_markup(text: str) -> None:
    plain, hostile = (
        Elements(report_page(a_report())),
        Elements(report_page(a_report(text=text, name=text))),
    )
    assert hostile.tags == plain.tags
    assert sorted(hostile.attributes) == sorted(plain.attributes)


@pytest.mark.parametrize(
    "missing", ["job", "model", "evaluation", "targets", "curve", "spectra", "calibration"]
)
def test_what_a_report_lacks_is_left_out(missing: str) -> None:
    report = a_report()
    del report[missing]
    assert "<h1>" in report_page(report)
    assert "<h1>" in report_page(report | {missing: None})


def test_it_opens_from_a_disk_without_a_network(new_page: NewPage, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(a_report(text="<b>held-out</b>")), "utf-8")
    page = new_page("http://nowhere.test", viewport={"width": 390, "height": 800})
    page.goto(file.as_uri())
    page.wait_for_selector("canvas")
    assert page.locator("figure[data-chart] canvas").count() == 2  # the curve, and one kind
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_text("60% of the size").is_visible()
    assert serious_faults(page) == []


def test_artifacts_of_one_size_are_all_drawn(new_page: NewPage, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(a_recovered_report()), "utf-8")
    page = new_page("http://nowhere.test")
    page.add_init_script(DRAWN)
    page.goto(file.as_uri())
    page.wait_for_selector("canvas")
    sizes, made, cut = page.evaluate("window.drawn[0]")
    assert sizes == [0.6, 0.6, 0.6, 1.0]
    assert made == [14.7, 21.5, 22.0, 10.5]
    assert cut == [21.0, None, None, None]
    assert serious_faults(page) == []


def test_thousands_of_layers_make_a_page_that_can_be_used(
    new_page: NewPage, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    report = a_report(layers=5000)
    report["targets"] *= 3
    file.write_text(report_page(report), "utf-8")
    assert file.stat().st_size < 3_000_000
    page = new_page("http://nowhere.test")
    page.goto(file.as_uri())
    page.wait_for_selector("canvas")
    assert page.evaluate("document.querySelectorAll('*').length") < 20_000


DRAWN = """
window.drawn = [];
let plot;
Object.defineProperty(window, "uPlot", {
  get: () => plot && new Proxy(plot, {
    construct(target, [options, data, place]) {
      window.drawn.push(data);
      return new target(options, data, place);
    },
  }),
  set: (each) => { plot = each; },
});
"""
"""Notes the numbers of charts."""
WRITTEN = """
window.written = [];
const fill = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const { width } = this.measureText(text);
  const left = { left: x, center: x - width / 2, right: x - width }[this.textAlign] ?? x;
  window.written.push({ text, left, right: left + width, y, canvas: this.canvas.width });
  fill.call(this, text, x, y);
};
"""
"""Notes what is written into charts."""
NAMES = ("bytes-0.25-transformers-embeddings-8", "keep-0.6", "keep-0.8", "keep-0.81")


@pytest.mark.parametrize(
    ("before", "after"), [(11.0, 16.1), (11.0, 11.2), (11.0, 350.0), (11.0, 40_000.0)]
)
@pytest.mark.parametrize("width", [390, 1400])
def test_names_and_ticks_of_the_curve_can_be_read(
    new_page: NewPage, tmp_path: Path, before: float, after: float, width: int
) -> None:
    report = a_report()
    sizes = (0.25, 0.6, 0.8, 0.81)
    made = after - before
    report["curve"] = [
        {
            "kind": "target",
            "name": name,
            "linear_fraction": size,
            "perplexity": {"held-out": after - made * (size - 0.25)},
        }
        for name, size in zip(NAMES, sizes, strict=True)
    ] + report["curve"][:1]
    file = tmp_path / "report.html"
    file.write_text(report_page(report), "utf-8")
    page = new_page("http://nowhere.test", viewport={"width": width, "height": 800})
    page.add_init_script(WRITTEN)
    page.goto(file.as_uri())
    page.wait_for_selector("canvas")
    written: list[dict[str, Any]] = page.evaluate("window.written")
    beginnings = {name[:6] for name in (*NAMES, "dense")}
    labels = [each for each in written if each["text"][:6] in beginnings]
    axis = next(n for n, each in enumerate(written) if each["text"] == "perplexity")
    ticks = written[axis + 1 : written.index(labels[0])]
    assert all(float(each["text"].replace(",", "")) > 0 for each in ticks)
    assert 2 <= len(ticks) <= 12
    assert all(abs(one["y"] - two["y"]) >= 12 for one, two in pairwise(ticks))
    assert len(labels) >= 3
    assert any(each["text"].startswith("bytes-0.25") for each in labels)
    for one, two in combinations(labels, 2):
        apart = one["right"] <= two["left"] or two["right"] <= one["left"]
        assert apart or abs(one["y"] - two["y"]) >= 12
    assert all(each["left"] >= 0 and each["right"] <= each["canvas"] for each in labels)
