"use strict";
const $ = (id) => document.getElementById(id);
const SECONDS = 30;
const PLOT_MS = 250; // plots are drawn less often than the picture: they cost the more
const COLOURS = ["#50dc64", "#3ca0ff", "#ffc83c", "#e66ee6", "#5adce6", "#ff6e6e"];
const PALETTE = new Uint32Array([0xff34251e, 0xffc97e40, 0xffffffff, 0xffffffff]); // ABGR: ground, OFF, ON
const PLOTS = { rate: "events_per_s", latency: "latency_ms", spikes: "spikes", energy: "energy_uj" };
let socket = null, about = null, state = {}, shown = null, dirty = false, plotted = 0, camera = null;
const history = [];
const small = document.createElement("canvas");

function send(command) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(`${scheme}//${location.host}/live${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => (typeof event.data === "string" ? told(JSON.parse(event.data)) : arrived(event.data));
  socket.onclose = () => {
    stopCamera();
    setStatus("connection lost, trying again", "");
    setTimeout(connect, 1000);
  };
}

function told(content) {
  if (content.error) return complain(content.error);
  if (content.sensor_size) {
    about = content;
    [small.width, small.height] = about.sensor_size;
    $("events").style.aspectRatio = `${small.width} / ${small.height}`;
    $("footnote").textContent = `Energy: ${about.energy_table} table, 45 nm, one accumulate per spike and weight it reaches; the ANN's (dashed) `
      + "counts one multiply-accumulate per weight and position. Memory traffic is in neither.";
  }
  state = { ...state, ...content };
  showState();
  dirty = true;
}

function setStatus(text, kind) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = `status ${kind}`;
}

function showState() {
  $("source").textContent = state.source;
  $("kind").hidden = false;
  $("kind").textContent = state.simulated ? "Simulated events" : "Recorded or measured events";
  $("kind").classList.toggle("simulated", state.simulated);
  $("simulated").hidden = !state.simulated;
  const waiting = state.status.startsWith("waiting");
  setStatus(state.paused ? "paused" : state.status, state.paused ? "paused" : waiting ? "waiting" : state.status === "running" ? "running" : "");
  $("curtain").hidden = !(state.paused || waiting || state.status === "ended");
  $("curtain").textContent = state.paused ? "Paused" : waiting ? state.status : "The source has ended";
  label("pause", state.paused ? "Resume" : "Pause");
  label("record", state.recording === null ? "Record" : `Stop recording (${compact(state.recording)} events)`);
  $("record").setAttribute("aria-pressed", String(state.recording !== null));
  $("download").hidden = !state.recorded;
  const mine = camera !== null;
  label("camera", mine ? "Stop this device's camera" : "Use this device's camera");
  $("camera").setAttribute("aria-pressed", String(mine));
  slider("score", state.score, 2);
  slider("timesteps", state.timesteps, 0);
  slider("contrast", state.contrast, 2);
  $("network").textContent = about && about.network === "ann" ? `ANN, weights ${about.weights}` : `SNN, T = ${state.timesteps}, weights ${about ? about.weights : ""}`;
  totals(state);
}

function label(id, text) {
  const node = $(id).firstChild;
  if (node.textContent.trim() !== text) node.textContent = `${text} `;
}

function slider(id, value, digits) {
  const input = $(id);
  input.disabled = value === null;
  if (document.activeElement !== input || !input.dataset.moving) input.value = value ?? input.min;
  $(`${id}-value`).textContent = value === null ? "not for this source" : Number(input.value).toFixed(digits);
}

function totals(content) {
  $("windows").textContent = content.windows.toLocaleString("en");
  $("dropped").textContent = content.dropped.toLocaleString("en");
}

function arrived(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  shown = { header, packed: new Uint8Array(buffer, 4 + length) };
  history.push({ at: performance.now(), ...header });
  dirty = true;
}

function draw() {
  requestAnimationFrame(draw);
  if (!dirty || !about) return;
  dirty = false;
  while (history.length && history[0].at < performance.now() - SECONDS * 1000) history.shift();
  if (shown) {
    drawEvents(shown);
    figures(shown.header);
  }
  if (performance.now() - plotted < PLOT_MS) return;
  plotted = performance.now();
  for (const [id, name] of Object.entries(PLOTS)) plot($(`plot-${id}`), name);
}

function fitCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1, width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

function drawEvents({ header, packed }) {
  const [width, height] = about.sensor_size, image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = PALETTE[(packed[i >> 2] >> ((i & 3) * 2)) & 3];
  small.getContext("2d").putImageData(image, 0, 0);
  const canvas = $("events"), ratio = fitCanvas(canvas), context = canvas.getContext("2d");
  const scale = Math.min(canvas.width / width, canvas.height / height), left = (canvas.width - width * scale) / 2, top = (canvas.height - height * scale) / 2;
  context.fillStyle = "#1e2534";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, top, width * scale, height * scale);
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const [x0, y0, x1, y1, score, label] of header.boxes) {
    const x = left + x0 * scale, y = top + y0 * scale, text = `${about.classes[label]} ${score.toFixed(2)}`, high = 20 * ratio;
    context.strokeStyle = context.fillStyle = COLOURS[label % COLOURS.length];
    context.lineWidth = 2 * ratio;
    context.strokeRect(x, y, (x1 - x0) * scale, (y1 - y0) * scale);
    const above = y - high >= 0 ? y - high : y;
    context.fillRect(x - ratio, above, context.measureText(text).width + 10 * ratio, high);
    context.fillStyle = "#05080c";
    context.fillText(text, x + 4 * ratio, above + high / 2);
  }
}

function figures(header) {
  const counts = {};
  for (const box of header.boxes) counts[about.classes[box[5]]] = (counts[about.classes[box[5]]] || 0) + 1;
  $("boxes").textContent = Object.entries(counts).map(([name, n]) => (n > 1 ? `${n} × ${name}` : name)).join(", ") || "no boxes";
  $("rate").textContent = compact(header.events_per_s);
  $("latency").textContent = header.latency_ms < 10 ? header.latency_ms.toFixed(1) : Math.round(header.latency_ms).toLocaleString("en");
  $("spikes").textContent = header.spikes === null ? "none" : compact(header.spikes);
  $("energy").textContent = Math.round(header.energy_uj).toLocaleString("en");
  $("share").textContent = header.spikes === null ? "" : `${Math.round((100 * header.energy_uj) / header.ann_uj)} % of ANN`;
  $("clock").textContent = `${(header.t_us / 1e6).toFixed(1)} s`;
  totals(header);
}

function compact(value) {
  return value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : value >= 1e4 ? `${Math.round(value / 1e3)} k` : Math.round(value).toLocaleString("en");
}

function plot(canvas, name) {
  const ratio = fitCanvas(canvas), context = canvas.getContext("2d"), { width, height } = canvas;
  const ann = name === "energy_uj" && history.length ? history[history.length - 1].ann_uj : 0;
  const top = Math.max(ann, ...history.map((point) => point[name] || 0), 1e-9) * 1.12, now = performance.now();
  const x = (at) => width * (1 - (now - at) / (SECONDS * 1000)), y = (value) => height - 2 * ratio - (height - 4 * ratio) * (value / top);
  context.clearRect(0, 0, width, height);
  context.font = `${10.5 * ratio}px system-ui, sans-serif`;
  context.lineWidth = ratio;
  context.strokeStyle = "#2a3342";
  context.beginPath();
  for (const part of [0, 0.5, 1]) context.rect(0, Math.round(y(top * part / 1.12)) - 0.5, width, 0);
  context.stroke();
  if (ann) {
    context.setLineDash([5 * ratio, 4 * ratio]);
    context.strokeStyle = "#ffc861";
    context.beginPath();
    context.moveTo(0, y(ann));
    context.lineTo(width, y(ann));
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = "#ffc861";
    context.fillText(`ANN ${Math.round(ann).toLocaleString("en")}`, 2 * ratio, y(ann) + 12 * ratio);
  }
  context.strokeStyle = "#58c4f6";
  context.lineWidth = 1.6 * ratio;
  context.beginPath();
  let before = -Infinity;
  for (const point of history) {
    if (point[name] === null) continue;
    if (point.at - before > 3000) context.moveTo(x(point.at), y(point[name]));
    else context.lineTo(x(point.at), y(point[name]));
    before = point.at;
  }
  context.stroke();
  if (!ann) {
    context.fillStyle = "#9fabbd";
    context.fillText(compact(top / 1.12), 2 * ratio, y(top / 1.12) + 12 * ratio);
  }
}

let complaint = 0;
function complain(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(complaint);
  complaint = setTimeout(() => ($("message").hidden = true), 8000);
}

function snapshot() {
  $("events").toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `evburst_${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 5000);
  });
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    return complain("This browser gives its camera to pages of https or localhost only: open this page through a tunnel, e.g. ssh -L 8000:127.0.0.1:8000 HOST");
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", frameRate: { ideal: 30 } }, audio: false });
    const video = document.createElement("video");
    Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
    await video.play();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = about.sensor_size;
    camera = { stream, video, canvas, last: -1, timer: setInterval(push, 15) };
    send({ do: "camera_on" });
  } catch (error) {
    stopCamera();
    complain(`The camera cannot be used: ${error.message}`);
  }
}

function stopCamera() {
  if (!camera) return;
  clearInterval(camera.timer);
  camera.stream.getTracks().forEach((track) => track.stop());
  camera = null;
  send({ do: "camera_off" });
}

function push() {
  const { video, canvas } = camera, { width, height } = canvas, now = video.currentTime;
  if (now === camera.last || !state.page_camera || socket.bufferedAmount > 2 * width * height) return;
  camera.last = now;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const scale = Math.max(width / video.videoWidth, height / video.videoHeight), w = video.videoWidth * scale, h = video.videoHeight * scale;
  context.drawImage(video, (width - w) / 2, (height - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, width, height), message = new Uint8Array(8 + width * height);
  message.set([69, 86, 66, 49, width & 255, width >> 8, height & 255, height >> 8]);
  for (let i = 0, j = 8; i < data.length; i += 4, j++) message[j] = (77 * data[i] + 150 * data[i + 1] + 29 * data[i + 2]) >> 8;
  socket.send(message);
}

const ACTIONS = {
  pause: () => send({ do: state.paused ? "resume" : "pause" }),
  snapshot,
  record: () => send({ do: state.recording === null ? "record" : "stop" }),
  camera: () => (camera ? stopCamera() : startCamera()),
};
for (const [id, action] of Object.entries(ACTIONS)) $(id).addEventListener("click", action);
for (const id of ["score", "timesteps", "contrast"]) {
  const input = $(id);
  input.addEventListener("input", () => {
    input.dataset.moving = "1";
    $(`${id}-value`).textContent = Number(input.value).toFixed(id === "timesteps" ? 0 : 2);
    send({ set: { [id]: Number(input.value) } });
  });
  for (const end of ["change", "blur"]) input.addEventListener(end, () => delete input.dataset.moving);
}
document.addEventListener("keydown", (event) => {
  const key = { " ": "pause", s: "snapshot", r: "record", c: "camera" }[event.key.toLowerCase()];
  if (!key || event.repeat || event.ctrlKey || event.metaKey || event.altKey || (key === "pause" && event.target.closest("button, a, input"))) return;
  event.preventDefault();
  ACTIONS[key]();
});
window.addEventListener("resize", () => (dirty = true));
$("download").href = `recording.dat${location.search}`;
connect();
draw();
