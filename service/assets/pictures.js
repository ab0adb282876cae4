// Draws the charts of a report with uPlot: each <figure data-chart> has its data as JSON.
"use strict";

(() => {
  const HEIGHT = 260;
  const COMPACT_HEIGHT = 190;
  const COLOURS = 5;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [4, 4]];
  const plots = new Map();

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function shown(axis, value) {
    if (value == null) return "";
    if (axis.percent) return `${+(100 * value).toFixed(1)}%`;
    return Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(+value.toPrecision(4));
  }

  // uPlot wants one list of x for all series; where a series has no point there, it gets null.
  function aligned(chart) {
    const xs = [...new Set(chart.series.flatMap((each) => each.points.map((point) => point[0])))];
    xs.sort((one, other) => one - other);
    const ys = chart.series.map((each) => {
      const at = new Map(each.points.map((point) => [point[0], point[1]]));
      return xs.map((x) => at.get(x) ?? null);
    });
    return [xs, ...ys];
  }

  const FONT = "12px system-ui, sans-serif";

  function axis(each, colour, grid) {
    return {
      label: each.label,
      font: FONT,
      labelFont: FONT,
      stroke: colour,
      grid: { stroke: grid, width: 1 },
      ticks: { stroke: grid, width: 1 },
      values: (_, splits) => splits.map((value) => shown(each, value)),
    };
  }

  // Bars of standard errors, where points have a third number.
  function bars(chart) {
    return (plot) => {
      chart.series.forEach((series, number) => {
        for (const [x, y, error] of series.points) {
          if (!error) continue;
          const [left, low, high] = [
            plot.valToPos(x, "x", true), plot.valToPos(y - error, "y", true), plot.valToPos(y + error, "y", true),
          ];
          plot.ctx.strokeStyle = variable(`--series-${(number % COLOURS) + 1}`);
          plot.ctx.beginPath();
          plot.ctx.moveTo(left, low);
          plot.ctx.lineTo(left, high);
          plot.ctx.stroke();
        }
      });
    };
  }

  // The names of points, beside them; on the left of those that are too far right.
  function labels(chart, colour) {
    return (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.fillStyle = colour;
      const [named] = chart.series.filter((each) => each.names.length);
      (named?.points ?? []).forEach(([x, y], number) => {
        const [left, top] = [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
        const isRight = left > bbox.left + bbox.width / 2;
        ctx.textAlign = isRight ? "right" : "left";
        ctx.fillText(named.names[number], left, top - 8 * devicePixelRatio);
      });
      ctx.restore();
    };
  }

  function range(each) {
    if (each.logarithmic) return (_, least, most) => [least / 1.15, most * 1.15];
    return (_, least, most) => {
      const room = (most - least || Math.abs(most) || 1) * 0.06;
      return [each.percent ? Math.max(0, least - room) : least - room, most + room];
    };
  }

  function draw(figure) {
    const place = figure.querySelector(".plot");
    const chart = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    plots.get(figure)?.destroy();
    const colour = variable("--pico-color") || getComputedStyle(document.body).color;
    const grid = variable("--pico-muted-border-color") || "rgba(128, 128, 128, 0.3)";
    const options = {
      width: Math.max(200, place.clientWidth),
      height: figure.classList.contains("compact") ? COMPACT_HEIGHT : HEIGHT,
      scales: {
        x: { time: false, distr: chart.x.logarithmic ? 3 : 1, range: range(chart.x) },
        y: { distr: chart.y.logarithmic ? 3 : 1, range: range(chart.y) },
      },
      axes: [axis(chart.x, colour, grid), axis(chart.y, colour, grid)],
      series: [
        { label: figure.classList.contains("compact") ? "at" : chart.x.label, value: (_, value) => shown(chart.x, value) },
        ...chart.series.map((each, number) => ({
          label: each.label,
          stroke: variable(`--series-${(number % COLOURS) + 1}`),
          width: each.line ? 2 : 0,
          dash: DASHES[number % COLOURS],
          spanGaps: true,
          points: {
            show: each.names.length > 0 || !each.line,
            size: 9,
            fill: variable(`--series-${(number % COLOURS) + 1}`),
          },
          value: (_, value) => shown(chart.y, value),
        })),
      ],
      hooks: { draw: [bars(chart), labels(chart, colour)] },
    };
    plots.set(figure, new uPlot(options, aligned(chart), place));
  }

  function drawAll(root) {
    for (const figure of root.querySelectorAll("figure[data-chart]")) draw(figure);
  }

  let waiting = 0;
  function again() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      for (const figure of [...plots.keys()]) {
        if (figure.isConnected) {
          draw(figure);
        } else {
          plots.get(figure).destroy();
          plots.delete(figure);
        }
      }
    });
  }

  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  document.addEventListener("htmx:load", (event) => drawAll(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => {
    if (plots.size === 0) drawAll(document);
  });
})();
