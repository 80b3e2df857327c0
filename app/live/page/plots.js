"use strict";
const SECONDS = 60;
const DOT_MS = 200; // half the width of a point without neighbours, which would have no line
const BLUE = "#58c4f6", GREEN = "#5fdc78", AREA = "#33415a";
const PLOTS = { // by canvas: lines and their colours; an area is drawn behind them, on a scale of its own
  rate: { lines: { events_per_s: BLUE } },
  latency: { lines: { latency_ms: BLUE } },
  spikes: { lines: { spikes: BLUE } },
  energy: { lines: { energy_uj: BLUE, beyond_silence_uj: GREEN }, area: "events" },
};

function fitCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

function compact(value) {
  return value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : value >= 1e4 ? `${Math.round(value / 1e3)} k` : Math.round(value).toLocaleString("en");
}

function plot(canvas, { lines, area }) {
  const ratio = fitCanvas(canvas), context = canvas.getContext("2d"), { width, height } = canvas, end = now();
  const highest = (names) => Math.max(1e-9, ...names.flatMap((name) => history.map((point) => point[name] || 0)));
  const x = (at) => width * (1 - (end - at) / (SECONDS * 1000)), y = (share) => height - 2 * ratio - (height - 18 * ratio) * share; // labels are above
  const trace = (points, name, top) => points.forEach((point) => context.lineTo(x(point.at), y(point[name] / top)));
  const top = highest(Object.keys(lines)), areaTop = area ? highest([area]) : 0;
  context.clearRect(0, 0, width, height);
  context.font = `${10.5 * ratio}px system-ui, sans-serif`;
  context.fillStyle = AREA;
  for (const points of area ? received(area) : []) {
    context.beginPath();
    context.moveTo(x(points[0].at), y(0));
    trace(points, area, areaTop);
    context.lineTo(x(points[points.length - 1].at), y(0));
    context.fill();
  }
  context.lineWidth = ratio;
  context.strokeStyle = "#2a3342";
  context.beginPath();
  for (const share of [0, 0.5, 1]) context.rect(0, Math.round(y(share)) - 0.5, width, 0);
  context.stroke();
  context.lineWidth = 1.6 * ratio;
  for (const [name, colour] of Object.entries(lines)) {
    context.strokeStyle = colour;
    for (const points of received(name)) {
      context.beginPath();
      trace(points, name, top);
      context.stroke();
    }
  }
  context.fillStyle = "#9fabbd";
  context.fillText(compact(top) + (area ? " µJ" : ""), 2 * ratio, y(1) - 5 * ratio);
  const label = area ? `${compact(areaTop)} ${area}` : "";
  context.fillText(label, width - context.measureText(label).width - 2 * ratio, y(1) - 5 * ratio);
}

function received(name) { // the points of a plot, in parts between which nothing was received
  const points = history.filter((point) => point[name] !== null), longest = Math.max(3000, 3 * usualGap(points)), parts = [];
  let previousAt = -Infinity;
  for (const point of points) {
    if (point.at - previousAt > longest) parts.push([]);
    parts[parts.length - 1].push(point);
    previousAt = point.at;
  }
  return parts.map((part) => (part.length > 1 ? part : [-DOT_MS, DOT_MS].map((ms) => ({ ...part[0], at: part[0].at + ms }))));
}

function usualGap(points) { // median, in ms: windows of slow motion are seconds apart
  const gaps = points.slice(1).map((point, k) => point.at - points[k].at).sort((a, b) => a - b);
  return gaps.length ? gaps[gaps.length >> 1] : 0;
}
