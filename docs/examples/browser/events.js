// Events of a simulated sensor, computed from pictures and counted in windows: the grids that evburst's networks read.
// A pixel's lin-log intensity changes linearly between two pictures; it makes an event at each crossing of its reference
// +- threshold, as in evburst/data/simulation/sensor.py, here without noise, mismatch, refractory time and low pass.

const LINEAR_BELOW = 20; // digital numbers
const LONGEST_GAP_MS = 250; // after a longer pause, or a jump back, a picture is a new beginning
const LOG = Float32Array.from({ length: 256 }, (_, grey) => (grey < LINEAR_BELOW ? (grey * Math.log(LINEAR_BELOW)) / LINEAR_BELOW : Math.log(grey)));

export class EventCounter {
  // width, height: of the pictures; gridWidth, gridHeight: of the grid, which is padded on the right and at the bottom;
  // bins: time bins of a window of windowMs; maxCount: where counts saturate; threshold: natural-log units.
  constructor({ width, height, gridWidth, gridHeight, bins, windowMs, maxCount = 10, threshold = 0.25 }) {
    Object.assign(this, { width, height, gridWidth, gridHeight, bins, windowMs, maxCount, threshold });
    this.level = new Float32Array(width * height);
    this.reference = new Float32Array(width * height);
    this.timeMs = null;
  }

  // Takes a picture, one grey value of 0 to 255 per pixel, and its time. Returns the windows that are complete, each
  // { counts, events }: counts is (2 * bins, gridHeight, gridWidth), channel = polarity * bins + bin.
  add(grey, timeMs) {
    if (this.timeMs === null || timeMs < this.timeMs || timeMs - this.timeMs > LONGEST_GAP_MS) {
      for (let i = 0; i < this.level.length; i++) this.level[i] = this.reference[i] = LOG[grey[i]];
      this.timeMs = this.windowStart = timeMs;
      this.clear();
      return [];
    }
    const complete = [];
    while (this.timeMs < timeMs) {
      const end = Math.min(timeMs, this.windowStart + this.windowMs);
      this.advance(grey, (end - this.timeMs) / (timeMs - this.timeMs), end);
      if (end === this.windowStart + this.windowMs) {
        complete.push({ counts: this.counts, events: this.events });
        this.windowStart = end;
        this.clear();
      }
    }
    return complete;
  }

  // Moves every level by this share of the way to the picture, until endMs, and counts the events on the way.
  advance(grey, share, endMs) {
    const { level, reference, threshold, bins, counts, width, gridWidth } = this;
    const plane = gridWidth * this.gridHeight;
    const binMs = this.windowMs / bins, first = (this.timeMs - this.windowStart) / binMs, binsPassed = (endMs - this.timeMs) / binMs;
    for (let i = 0, y = 0; y < this.height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const from = level[i], to = from + share * (LOG[grey[i]] - from);
        const sign = to > from ? 1 : -1, firstChannel = sign > 0 ? bins : 0;
        let next = reference[i] + sign * threshold;
        while (sign * (to - next) >= 0) {
          const bin = Math.min(bins - 1, Math.floor(first + (binsPassed * (next - from)) / (to - from)));
          const at = (firstChannel + bin) * plane + y * gridWidth + x;
          if (counts[at] < this.maxCount) counts[at]++;
          this.events++;
          reference[i] = next;
          next += sign * threshold;
        }
        level[i] = to;
      }
    }
    this.timeMs = endMs;
  }

  clear() {
    this.counts = new Uint8Array(2 * this.bins * this.gridHeight * this.gridWidth);
    this.events = 0;
  }
}
