// Draws the charts of the comparison from the data in the page.

"use strict";

(() => {
  const charts = JSON.parse(document.getElementById("charts")?.textContent ?? "[]");
  const figures = [...document.querySelectorAll("[data-chart]")];
  const HEIGHT = 320;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function short(number) {
    for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
      if (Math.abs(number) >= size) return `${+(number / size).toPrecision(3)}${unit}`;
    }
    return String(+number.toPrecision(4));
  }

  function draw(figure) {
    const chart = charts[figure.dataset.chart];
    const place = figure.querySelector(".canvas");
    const drawn = chart.series.filter((each) => each.points.length);
    const tables = drawn.map((each) => {
      const points = new Map(each.points.map(([x, y]) => [x, y]));
      return [[...points.keys()], [...points.values()]];
    });
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const names = drawn.map((each) => new Map(each.points.map(([x, , name]) => [x, name])));
    const line = { stroke: colour("--pico-muted-color"), grid: { stroke: colour("--surface-line"), width: 1 }, ticks: { show: false } };
    const unit = chart.bytes ? "B" : "";
    place.replaceChildren();
    return new uPlot({
      width: place.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false, range: padded }, y: { range: padded } },
      axes: [
        { ...line, space: 75, values: (_, ticks) => ticks.map((each) => short(each) + unit) },
        { ...line, size: 60, values: (_, ticks) => ticks.map(short) },
      ],
      series: [
        { label: chart.x, value: (_, x) => (x == null ? "–" : short(x) + unit) },
        ...drawn.map((each, number) => ({
          label: each.name,
          stroke: colour(`--series-${number + 1}`),
          width: 2,
          spanGaps: true,
          points: { show: true, size: 8, fill: colour(`--series-${number + 1}`) },
          value: (self, y, _, index) => (y == null ? "–" : `${short(y)} (${names[number].get(self.data[0][index])})`),
        })),
      ],
    }, data, place);
  }

  function padded(_, least, most) {
    const margin = (most - least) * 0.08 || Math.abs(most) * 0.1 || 1;
    return [least - margin, most + margin];
  }

  let plots = figures.map(draw);

  function again() {
    for (const each of plots) each.destroy();
    plots = figures.map(draw);
  }

  window.addEventListener("resize", () => {
    for (const [index, plot] of plots.entries()) {
      plot.setSize({ width: figures[index].querySelector(".canvas").clientWidth, height: HEIGHT });
    }
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
})();
