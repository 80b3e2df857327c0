"use strict";
const $ = (id) => document.getElementById(id);
const SEEK_S = 5; // by an arrow key
const PLOT_MS = 250; // plots are drawn less often than the events because they take longer
const ROOT = document.body.dataset.root ? `${document.body.dataset.root}/` : location.pathname.replace(/[^/]*$/, "");
const KINDS = {
  measured: ["Measured events", "Measured live by an event camera."],
  recorded: ["Recorded events", "Read from a file, which does not state whether they were measured or simulated."],
  simulated: ["Simulated events", "Computed from ordinary video by a model of an event camera."],
  drawn: ["Drawn and simulated", "Computed from a drawn street scene by a model of an event camera; no camera is involved."],
};
let about = null, state = {}, shown = null, dirty = false, plottedAt = 0, camera = null;
let inset = false, pictured = false; // whether the source's picture is wanted, and whether the newest result came with it
// Of this page alone, as inset: pausedAt is 0 unless paused, kept the state that belongs to the paused picture.
let pausedAt = 0, kept = {};
let pixelColours = new Uint32Array(4); // ABGR of: no event, OFF, ON, ON
const history = [];
const sensorCanvas = document.createElement("canvas"); // one canvas pixel per sensor pixel

function receiveState(content) {
  if (content.error) {
    if (content.to === "camera_on") stopCamera(false);
    return showMessage(content.error);
  }
  lostAt = 0;
  if (content.run) followRun(content.run);
  if (content.sensor_size) applyAbout(content);
  state = { ...state, ...content, ...kept };
  showState();
  dirty = true;
}

let run = null;
function followRun(name) { // a restarted server has another sensor, clock and totals: nothing of the run before is kept
  if (run !== null && run !== name) {
    shown = null;
    pictured = false;
    history.length = 0;
    for (const canvas of document.querySelectorAll("canvas")) canvas.width = canvas.height = 1;
    for (const figure of document.querySelectorAll(".card .value b, #pace, #clock")) figure.textContent = "–";
    for (const id of ["share", "traffic"]) $(id).textContent = "";
    $("boxes").textContent = "no boxes";
    if (pausedAt) pause(false);
  }
  run = name;
}

function applyAbout(content) {
  about = content;
  [sensorCanvas.width, sensorCanvas.height] = about.sensor_size;
  $("events").style.aspectRatio = `${sensorCanvas.width} / ${sensorCanvas.height}`;
  const { ground, off, on } = about.palette;
  pixelColours = new Uint32Array([ground, off, on, on].map(abgr));
  $("on").style.background = on;
  $("off").style.background = off;
  $("stage").style.background = ground;
  const choices = [...$("weights-choice").options].map((option) => option.value);
  if (choices.join() !== about.weights_choices.join()) { // else what was just chosen stays while its network is prepared
    $("weights-choice").replaceChildren(...about.weights_choices.map((name) => new Option(name, name)));
  }
  $("footnote").textContent = `Energy: ${about.energy_table.toUpperCase()} operations at 45 nm. The SNN's counts one accumulate per spike and outgoing weight, `
    + "the ANN's one multiply-accumulate per weight and position. Both are without memory traffic."
    + (about.count_every > 1 && about.network === "snn" ? ` Spikes and energy are those of the last counted window; one of ${about.count_every} is counted.` : "");
}

function abgr(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

function setStatus(text, kind) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = `status ${kind}`;
}

function showCurtain(text, kind = "") {
  Object.assign($("curtain"), { hidden: !text, textContent: text, className: `curtain ${kind}` });
  document.body.classList.toggle("offline", kind === "offline");
}

function now() {
  return pausedAt || performance.now();
}

function pause(on) {
  if (lostAt || !about) return; // not connected
  pausedAt = on ? performance.now() : 0;
  kept = on ? { source: state.source, kind: state.kind, simulated: state.simulated, position_s: state.position_s } : {};
  send({ paused: on });
  showState();
  dirty = true;
}

function showState() {
  $("source").textContent = state.source;
  const [kind, help] = KINDS[state.kind] || [state.kind, ""];
  Object.assign($("kind"), { hidden: false, textContent: kind, className: `badge ${state.kind}` });
  $("kind").dataset.help = help;
  $("simulated").hidden = !state.simulated;
  $("video-kind").textContent = state.kind === "drawn" ? "a drawn street scene" : "ordinary video";
  const waiting = state.status.startsWith("waiting"), forCamera = waiting && state.status.endsWith("the page's camera");
  setStatus(pausedAt ? "paused" : state.status, pausedAt ? "paused" : waiting ? "waiting" : state.status === "running" ? "running" : "");
  showCurtain(
    pausedAt ? "Paused"
      : forCamera && document.fullscreenElement ? "Press C to simulate events from the picture of this device's camera."
        : forCamera ? "Press “Use this device's camera” below to simulate events from its picture."
          : waiting ? state.status
            : state.status === "ended" ? "The source has ended" : "",
    pausedAt ? "paused" : "",
  );
  $("camera").classList.toggle("suggested", forCamera && camera === null);
  setLabel("pause", pausedAt ? "Resume" : "Pause");
  setLabel("record", state.recording === null ? "Record" : `Stop recording (${compact(state.recording)} events)`);
  $("record").setAttribute("aria-pressed", String(state.recording !== null));
  $("download").hidden = !state.recorded;
  showStopped(state.recording_stopped);
  if ($("warning").textContent !== state.warning) $("warning").textContent = state.warning;
  $("warning").hidden = !state.warning;
  const usesCamera = camera !== null;
  setLabel("camera", usesCamera ? "Stop this device's camera" : "Use this device's camera");
  $("camera").setAttribute("aria-pressed", String(usesCamera));
  $("picture").hidden = !state.has_picture;
  showInset();
  for (const [id, value] of Object.entries({ "network-choice": state.wanted.network, "weights-choice": state.wanted.weights })) {
    if (document.activeElement !== $(id) || !state.preparing) $(id).value = value;
  }
  $("preparing").hidden = !(state.preparing || state.problem);
  $("preparing").textContent = state.problem || "Preparing the new network; the current one keeps running.";
  showSlider("score", state.score, 2);
  showSlider("timesteps", state.timesteps, 0);
  showSlider("contrast", state.contrast, 2);
  $("seek").hidden = state.duration_s === null;
  if (state.duration_s !== null && !$("position").dataset.moving) showPosition(state.position_s);
  if (about && !pausedAt) showNetwork();
  showTotals(state);
}

function showNetwork() {
  const { network, timesteps_used: timesteps, weights, lead_ms: lead } = about;
  $("network").textContent = `${network === "ann" ? "ANN" : `SNN, T = ${timesteps}`}, weights ${weights}${lead ? `, boxes ${lead} ms ahead` : ""}`;
}

let stopped = "";
function showStopped(reason) { // why the recording ended by itself
  if (reason === stopped) return;
  stopped = reason;
  if (!reason) return endMessage("recording");
  showMessage(`The recording has stopped: ${reason}. “Download .dat” saves what was recorded before.`, "recording");
}

function setLabel(id, text) {
  const node = $(id).firstChild;
  if (node.textContent.trim() !== text) node.textContent = `${text} `;
}

function showSlider(id, value, digits) {
  const input = $(id);
  input.disabled = value === null;
  if (value === null) {
    input.value = input.min;
    $(`${id}-value`).textContent = id === "timesteps" ? "the ANN has none" : "not for this source";
  } else if (document.activeElement !== input || !input.dataset.moving) {
    widenSlider(input, value);
    input.value = value; // on the slider's nearest step
    const places = { minimumFractionDigits: digits, maximumFractionDigits: digits ? 3 : 0 };
    $(`${id}-value`).textContent = value.toLocaleString("en", places);
  }
}

function widenSlider(input, value) { // by whole steps, for a value that was given on the command line
  const step = Number(input.step), low = Number(input.min), high = Number(input.max);
  if (value < low) input.min = low - step * Math.ceil((low - value) / step);
  if (value > high) input.max = high + step * Math.ceil((value - high) / step);
}

function showPosition(seconds) {
  Object.assign($("position"), { max: state.duration_s, value: seconds });
  $("position-value").textContent = `${playingTime(seconds)} / ${playingTime(state.duration_s)}`;
  $("position").setAttribute("aria-valuetext", $("position-value").textContent);
}

function playingTime(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6), rest = (tenths % 600) / 10, minutes = Math.floor(tenths / 600) % 60, hours = Math.floor(tenths / 36000);
  return `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${rest.toFixed(1).padStart(4, "0")}`;
}

function seek(seconds) {
  if (pausedAt) pause(false);
  state.position_s = Math.min(Math.max(seconds, 0), state.duration_s);
  showPosition(state.position_s);
  send({ set: { position: state.position_s } });
}

function showTotals(content) {
  $("windows").textContent = content.windows.toLocaleString("en");
  $("dropped").textContent = content.dropped.toLocaleString("en");
}

function receiveResult(buffer) {
  arrived += 1;
  send({ received: arrived }); // the server waits for it, so that the picture of a slow connection is not out of date
  if (pausedAt) return; // sent before the server knew
  const headerBytes = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerBytes)));
  const eventBytes = Math.ceil((about.sensor_size[0] * about.sensor_size[1]) / 4), pictureAt = 4 + headerBytes + eventBytes;
  shown = { header, packed: new Uint8Array(buffer, 4 + headerBytes, eventBytes) };
  if (buffer.byteLength > pictureAt) drawInset(new Blob([new Uint8Array(buffer, pictureAt)], { type: "image/jpeg" }));
  else pictured = false;
  history.push({ at: performance.now(), ...header });
  forgetOld();
  showTotals(header);
  dirty = true;
}

function forgetOld() { // with every result, because a page in the background is not drawn
  const first = history.findIndex((point) => point.at >= now() - SECONDS * 1000);
  history.splice(0, first < 0 ? history.length : first);
}

async function drawInset(blob) {
  const picture = await createImageBitmap(blob), canvas = $("inset");
  if (canvas.width !== picture.width || canvas.height !== picture.height) Object.assign(canvas, { width: picture.width, height: picture.height });
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
  pictured = true;
  showInset();
}

function showInset() { // not before there is a picture: a pause may begin without one
  $("inset").hidden = !(inset && pictured && state.has_picture);
}

function draw() {
  requestAnimationFrame(draw);
  if (!dirty || !about) return;
  dirty = false;
  forgetOld();
  if (shown) {
    drawEvents(shown);
    figures(shown.header);
  }
  if (performance.now() - plottedAt < PLOT_MS) return;
  plottedAt = performance.now();
  for (const [id, content] of Object.entries(PLOTS)) plot($(`plot-${id}`), content);
}

function drawEvents({ header, packed }) {
  const [width, height] = about.sensor_size, image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = pixelColours[(packed[i >> 2] >> ((i & 3) * 2)) & 3];
  sensorCanvas.getContext("2d").putImageData(image, 0, 0);
  const canvas = $("events"), ratio = fitCanvas(canvas), context = canvas.getContext("2d");
  const scale = Math.min(canvas.width / width, canvas.height / height), left = (canvas.width - width * scale) / 2, top = (canvas.height - height * scale) / 2;
  context.fillStyle = about.palette.ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(sensorCanvas, left, top, width * scale, height * scale);
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const onCanvas = ([x0, y0, x1, y1]) => [left + x0 * scale, top + y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale];
  for (const [colour, width] of [["#000", 4], [null, 2]]) { // a dark edge keeps the box visible over white and blue
    for (const box of header.boxes) {
      context.strokeStyle = colour || colourOf(box[5]);
      context.lineWidth = width * ratio;
      context.strokeRect(...onCanvas(box));
    }
  }
  const placed = []; // [left, top, width] of the labels drawn so far
  for (const box of header.boxes) {
    const [x, y, , h] = onCanvas(box), text = `${box[6]} ${box[4].toFixed(2)}`;
    const high = 20 * ratio, wide = context.measureText(text).width + 10 * ratio;
    const at = Math.max(0, Math.min(x - ratio, canvas.width - wide));
    const overlaps = ([x0, y0, w0], row) => at < x0 + w0 && x0 < at + wide && row < y0 + high && y0 < row + high;
    const isFree = (row) => row >= 0 && row + high <= canvas.height && !placed.some((other) => overlaps(other, row));
    const row = [y - high, y + h, y, y + high, y - 2 * high, y + h + high].find(isFree) ?? Math.max(0, y - high);
    placed.push([at, row, wide]);
    context.fillStyle = colourOf(box[5]);
    context.fillRect(at, row, wide, high);
    context.fillStyle = "#05080c";
    context.fillText(text, at + 5 * ratio, row + high / 2);
  }
}

function colourOf(label) {
  return about.palette.classes[label % about.palette.classes.length];
}

function figures(header) {
  const counts = {};
  for (const box of header.boxes) counts[box[6]] = (counts[box[6]] || 0) + 1;
  $("boxes").textContent = Object.entries(counts).map(([name, n]) => (n > 1 ? `${n} × ${name}` : name)).join(", ") || "no boxes";
  $("rate").textContent = compact(header.events_per_s);
  $("latency").textContent = header.latency_ms < 10 ? header.latency_ms.toFixed(1) : Math.round(header.latency_ms).toLocaleString("en");
  if (header.energy_uj !== null) countedFigures(header); // null: no window has been counted yet
  $("events-per-window").textContent = compact(header.events);
  $("pace").textContent = windowRate();
  $("clock").textContent = `${(header.t_us / 1e6).toFixed(1)} s`;
}

function countedFigures(header) {
  $("spikes").textContent = header.spikes === null ? "none" : compact(header.spikes);
  $("energy").textContent = microjoules(header.energy_uj);
  const isAnn = header.spikes === null;
  $("energy-of").textContent = isAnn ? "every multiplication" : "every spike";
  $("beyond").parentElement.hidden = isAnn;
  $("beyond").textContent = header.beyond_silence_uj === null ? "–" : microjoules(header.beyond_silence_uj);
  const over = header.energy_uj > header.ann_uj;
  $("share").textContent = header.idle ? "idle" : header.spikes === null ? "" : `${Math.round((100 * header.energy_uj) / header.ann_uj)} % of ANN's ${microjoules(header.ann_uj)} µJ`;
  const { traffic } = header; // null: the ANN, or an idle window
  $("traffic").textContent = traffic ? `With memory traffic, in a model without reuse, the SNN takes ${microjoules(traffic.uj)} µJ, ${Math.round(100 * traffic.share_of_ann)} % of the ANN's.` : "";
  for (const id of ["energy", "share"]) $(id).classList.toggle("over", over);
}

function microjoules(value) {
  return value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function windowRate() {
  const span = Math.max(5000, 3 * usualGap(history)), recent = history.filter((point) => point.at > now() - span);
  if (recent.length < 2) return "–";
  const first = recent[0], last = recent[recent.length - 1];
  const rate = (1000 * (last.windows - first.windows)) / (last.at - first.at);
  return rate.toFixed(rate < 1 ? 2 : 1);
}

let messageTimer = 0, messageAbout = "";
function showMessage(text, about = "") { // for eight seconds, or until endMessage if it says what it is about
  $("message").textContent = text;
  $("message").hidden = false;
  messageAbout = about;
  clearTimeout(messageTimer);
  if (!about) messageTimer = setTimeout(() => ($("message").hidden = true), 8000);
}

function endMessage(about) {
  if (messageAbout === about) $("message").hidden = true;
}

function snapshot() {
  if (!shown) return showMessage("There is no picture of events yet, so no snapshot.");
  $("events").toBlob((blob) => {
    if (!blob) return showMessage("No snapshot: the window is too small for the picture."); // a canvas without pixels
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `evburst_${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 5000);
  });
}

let asking = false; // until the browser has given a camera or refused it
async function startCamera() {
  if (lostAt || !about) return; // not connected
  if (asking || camera) return;
  if (!navigator.mediaDevices) {
    return showMessage("Browsers allow camera access only on https or localhost: open this page through a tunnel, e.g. ssh -L 8000:127.0.0.1:8000 HOST");
  }
  // Right after a stop, the newest state may still count this page's camera.
  if (state.page_camera && !state.own_camera) return showMessage("another page's camera is in use");
  asking = true;
  try {
    const wish = { video: { facingMode: "environment", frameRate: { ideal: 30 } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wish).finally(() => (asking = false));
    if (lostAt) stopTracks(stream);
    else await useCamera(stream);
  } catch (error) {
    stopCamera(true);
    const advice = { NotAllowedError: "Allow it next to the address bar and try again.", NotFoundError: "Connect one and try again." };
    showMessage(`The camera cannot be used: ${error.message}. ${advice[error.name] || ""}`.trim(), "camera");
  }
}

async function useCamera(stream) {
  const video = document.createElement("video"), canvas = document.createElement("canvas");
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  [canvas.width, canvas.height] = about.sensor_size;
  // Before the camera plays: one that never does can be stopped as well.
  camera = { stream, video, canvas, last: -1, timer: setInterval(sendPicture, 15) };
  for (const track of stream.getTracks()) track.addEventListener("ended", () => loseCamera(stream)); // not by stopTracks
  if (pausedAt) pause(false);
  send({ do: "camera_on" });
  showState();
  try {
    await video.play();
    endMessage("camera");
  } catch (error) {
    if (camera && camera.stream === stream) throw error; // else it was stopped before it played
  }
}

function loseCamera(stream) {
  if (!camera || camera.stream !== stream) return;
  stopCamera(true);
  showMessage("This device's camera has stopped: it was unplugged, or this page may no longer use it.", "camera");
}

function stopCamera(notifyServer) {
  if (!camera) return;
  clearInterval(camera.timer);
  stopTracks(camera.stream);
  camera = null;
  if (notifyServer) send({ do: "camera_off" });
  showState();
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

function sendPicture() {
  const { video, canvas } = camera, { width, height } = canvas, now = video.currentTime;
  if (now === camera.last || video.readyState < video.HAVE_CURRENT_DATA) return;
  if (!state.own_camera || socket.bufferedAmount > 2 * width * height) return;
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
  pause: () => pause(!pausedAt),
  snapshot,
  record: () => send({ do: state.recording === null ? "record" : "stop" }),
  camera: () => (camera ? stopCamera(true) : startCamera()),
  picture: () => {
    inset = !inset;
    $("picture").setAttribute("aria-pressed", String(inset));
    showInset();
    if (inset && pausedAt && !pictured) showMessage("The source's picture is shown once this page is resumed.");
    send({ inset });
  },
  fullscreen: () => (document.fullscreenElement ? document.exitFullscreen() : $("view").requestFullscreen().catch((error) => showMessage(`Fullscreen: ${error.message}`))),
};
for (const [id, action] of Object.entries(ACTIONS)) $(id).addEventListener("click", action);
for (const id of ["network", "weights"]) $(`${id}-choice`).addEventListener("change", (event) => send({ set: { [id]: event.target.value } }));
for (const id of ["score", "timesteps", "contrast"]) {
  const input = $(id);
  input.addEventListener("input", () => {
    input.dataset.moving = "1";
    $(`${id}-value`).textContent = Number(input.value).toFixed(id === "timesteps" ? 0 : 2);
    send({ set: { [id]: Number(input.value) } });
  });
  for (const end of ["change", "blur"]) input.addEventListener(end, () => delete input.dataset.moving);
}
// A drag seeks once, when it ends, because seeking may read the file from its beginning.
$("position").addEventListener("input", () => {
  $("position").dataset.moving = "1";
  showPosition(Number($("position").value));
});
for (const end of ["change", "blur"]) $("position").addEventListener(end, () => delete $("position").dataset.moving);
$("position").addEventListener("change", () => seek(Number($("position").value)));
document.addEventListener("keydown", (event) => {
  const arrow = { ArrowLeft: -SEEK_S, ArrowRight: SEEK_S }[event.key];
  if (arrow && !$("seek").hidden && !event.target.closest("select, input:not(#position)") && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    return seek(state.position_s + arrow);
  }
  const isSlider = event.target.matches("input[type=range]"); // which has no use for these keys
  const key = { " ": "pause", s: "snapshot", r: "record", c: "camera", p: "picture", f: "fullscreen" }[event.key.toLowerCase()];
  if (!key || event.target.closest("select") || $(key).hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey || (key === "pause" && !isSlider && event.target.closest("button, a, input"))) return;
  event.preventDefault();
  ACTIONS[key]();
});
window.addEventListener("resize", () => (dirty = true));
document.addEventListener("fullscreenchange", () => about && !lostAt && showState());
$("download").href = `${ROOT}recording.dat${location.search}`;
connect();
draw();
