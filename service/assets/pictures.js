// Draws the charts of a report with uPlot: each <figure data-chart> has its data as JSON.
"use strict";

(() => {
  const HEIGHT = 320; // CSS pixels
  const COMPACT_HEIGHT = 190;
  const NARROW = 480;
  const AXIS_ROOM = 90; // what the axis of x takes of a height
  const TICK_ROOM = 24; // between two ticks of y
  const SHORT_NAME = 16; // characters
  const COLOURS = 5;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [4, 4]];
  const plots = new Map();

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function shown(axis, value) {
    if (value == null) return "";
    if (axis.percent) return `${+(100 * value).toFixed(1)}%`;
    return Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(+value.toPrecision(4));
  }

  // uPlot wants one list of x for all series; where a series has no point there, it gets null. An x
  // at which a series has several points is there as often.
  function aligned(chart) {
    const rows = new Map();
    const places = chart.series.map((each) => {
      const count = new Map();
      return each.points.map(([x]) => {
        const number = count.get(x) ?? 0;
        count.set(x, number + 1);
        rows.set(x, Math.max(rows.get(x) ?? 0, number + 1));
        return `${x} ${number}`;
      });
    });
    const xs = [...rows.keys()].sort((one, other) => one - other)
      .flatMap((x) => Array.from({ length: rows.get(x) }, (_, number) => [x, `${x} ${number}`]));
    const ys = chart.series.map((each, series) => {
      const at = new Map(each.points.map((point, number) => [places[series][number], point[1]]));
      return xs.map(([, place]) => at.get(place) ?? null);
    });
    return [xs.map(([x]) => x), ...ys];
  }

  const FONT = "12px system-ui, sans-serif";

  // Ticks of a logarithmic scale: as many as have room, at numbers that one likes to read.
  const STEPS = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 5, 7], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]];

  function logarithmicTicks(least, most, height) {
    const count = Math.max(2, Math.floor(height / TICK_ROOM));
    if (most / least < 3) {
      const step = niceStep((most - least) / count);
      const first = Math.ceil(least / step);
      return Array.from({ length: Math.floor(most / step) - first + 1 }, (_, each) => (first + each) * step);
    }
    const perNeper = height / Math.log(most / least);
    for (const steps of [...STEPS].reverse()) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(least)); 10 ** power <= most; power += 1) {
        ticks.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= least && tick <= most));
      }
      const gaps = ticks.slice(1).map((tick, number) => perNeper * Math.log(tick / ticks[number]));
      if (ticks.length >= 2 && Math.min(...gaps) >= TICK_ROOM) return ticks;
    }
    return [least, most].map((each) => Number(each.toPrecision(2)));
  }

  function niceStep(least) {
    const power = 10 ** Math.floor(Math.log10(least));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= least);
  }

  const short = (label) => label.split(":")[0];

  function axis(each, colour, grid, isNarrow) {
    return {
      label: isNarrow ? short(each.label) : each.label,
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

  // The names of points, beside them: where they cover no point and no other name, shortened if need
  // be. A name without room is left out; the table of numbers has it.
  function labels(chart, colour) {
    return (plot) => {
      const { ctx, bbox } = plot;
      const named = chart.series.find((each) => each.names.length);
      if (!named) return;
      const size = 12 * devicePixelRatio;
      const place = ([x, y]) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
      const taken = chart.series.flatMap((each) => each.points.map(place)).map(([left, top]) => (
        { left: left - size / 2, right: left + size / 2, top: top - size / 2, bottom: top + size / 2 }
      ));
      ctx.save();
      ctx.font = `${size}px system-ui, sans-serif`;
      ctx.textAlign = "left";
      ctx.textBaseline = "top";
      ctx.fillStyle = colour;
      named.points.forEach((point, number) => {
        const found = room(ctx, named.names[number], place(point), size, bbox, taken);
        if (!found) return;
        taken.push(found);
        ctx.fillText(found.text, found.left, found.top);
      });
      ctx.restore();
    };
  }

  // Where a name has room beside a point, or undefined.
  function room(ctx, name, [x, y], size, bbox, taken) {
    const texts = name.length > SHORT_NAME ? [name, `${name.slice(0, SHORT_NAME - 1)}…`] : [name];
    for (const text of texts) {
      const { width } = ctx.measureText(text);
      for (const top of [y - 1.7 * size, y + 0.7 * size]) {
        for (const left of [x, x - width, x - width / 2]) {
          const box = { text, left, right: left + width, top, bottom: top + size };
          const isInside = left >= bbox.left && box.right <= bbox.left + bbox.width
            && top >= bbox.top - size && box.bottom <= bbox.top + bbox.height;
          if (isInside && !taken.some((each) => overlap(each, box))) return box;
        }
      }
    }
    return undefined;
  }

  const GAP = 4; // between two names
  const overlap = (one, other) => one.left < other.right + GAP && other.left < one.right + GAP
    && one.top < other.bottom && other.top < one.bottom;

  // `room` is the share of a logarithmic scale that stays free at either end, for names of points.
  function range(each, room = 0) {
    if (each.logarithmic) {
      return (_, least, most) => {
        const factor = Math.max(1.15, (most / least) ** room);
        return [least / factor, most * factor];
      };
    }
    return (_, least, most) => {
      const margin = (most - least || Math.abs(most) || 1) * 0.06;
      return [each.percent ? Math.max(0, least - margin) : least - margin, most + margin];
    };
  }

  function draw(figure) {
    const place = figure.querySelector(".plot");
    const chart = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    plots.get(figure)?.destroy();
    const colour = variable("--pico-color") || getComputedStyle(document.body).color;
    const grid = variable("--pico-muted-border-color") || "rgba(128, 128, 128, 0.3)";
    const isCompact = figure.classList.contains("compact");
    const width = Math.max(200, place.clientWidth);
    const height = isCompact ? COMPACT_HEIGHT : HEIGHT;
    const yAxis = axis(chart.y, colour, grid, false);
    yAxis.size = (_, values) => Math.max(50, 16 + 7 * Math.max(0, ...(values ?? []).map((each) => each.length)));
    if (chart.y.logarithmic) {
      yAxis.splits = (_, __, least, most) => logarithmicTicks(least, most, height - AXIS_ROOM);
      yAxis.filter = (_, splits) => splits;
    }
    const options = {
      width,
      height,
      scales: {
        x: { time: false, distr: chart.x.logarithmic ? 3 : 1, range: range(chart.x) },
        y: { distr: chart.y.logarithmic ? 3 : 1, range: range(chart.y, 0.12) },
      },
      axes: [axis(chart.x, colour, grid, width < NARROW), yAxis],
      series: [
        { label: isCompact ? "at" : short(chart.x.label), value: (_, value) => shown(chart.x, value) },
        ...chart.series.map((each, number) => ({
          label: each.label,
          stroke: variable(`--series-${(number % COLOURS) + 1}`),
          width: each.line ? 2 : 0,
          dash: DASHES[number % COLOURS],
          spanGaps: true,
          points: {
            show: each.names.length > 0 || !each.line,
            size: 9,
            fill: each.hollow ? "transparent" : variable(`--series-${(number % COLOURS) + 1}`),
            stroke: variable(`--series-${(number % COLOURS) + 1}`),
            width: each.hollow ? 2 : 1,
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
