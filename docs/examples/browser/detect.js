// Finds objects in a camera's or a video's pictures, in the browser alone: events.js makes the events, and the exported
// spiking network, with boxes, runs in onnxruntime-web. See "In the browser" in docs/export.md.

import { EventCounter } from "./events.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const MODEL = "street_boxes.onnx"; // evburst export --weights street --onnx-snn street_boxes.onnx --with-boxes --sensor-size 320x240
const WIDTH = 320, HEIGHT = 240, WINDOW_MS = 50; // as exported; as the network was trained
const CLASSES = ["car", "pedestrian"], COLOURS = ["#ffb000", "#4fc3f7"];
const SCALE = 3; // pixels of the canvas per pixel of the sensor

const element = (id) => document.getElementById(id);
const canvas = element("picture"), drawing = canvas.getContext("2d"), video = document.createElement("video");
const small = new OffscreenCanvas(WIDTH, HEIGHT).getContext("2d", { willReadFrequently: true });
const shown = new OffscreenCanvas(WIDTH, HEIGHT), shownContext = shown.getContext("2d");
let ort = null, session = null, shape = null, counter = null, waiting = null, busy = false, windows = 0, skipped = 0, source = 0;

function say(text) {
  element("status").textContent = text;
}

async function load() {
  ort = await import(RUNTIME); // here, so that a page without it says so
  ort.env.wasm.proxy = true; // the network runs in a worker, so that pictures are not missed meanwhile
  session = await ort.InferenceSession.create(MODEL);
  shape = session.inputMetadata[0].shape; // 1, 2 * bins, height and width of the grid
  for (const id of ["camera", "file"]) element(id).disabled = false;
  say("Ready.");
}

function begin() {
  const [, channels, gridHeight, gridWidth] = shape;
  counter = new EventCounter({ width: WIDTH, height: HEIGHT, gridWidth, gridHeight, bins: channels / 2, windowMs: WINDOW_MS });
  windows = skipped = 0;
  const own = ++source;
  const step = (now, { mediaTime }) => {
    if (own !== source) return; // another one has been chosen
    video.requestVideoFrameCallback(step);
    for (const window of counter.add(greyPicture(), 1000 * mediaTime)) detect(window);
  };
  video.requestVideoFrameCallback(step);
}

function greyPicture() {
  // The largest part of the picture with the sensor's proportions.
  const { videoWidth: w, videoHeight: h } = video, scale = Math.min(w / WIDTH, h / HEIGHT);
  small.drawImage(video, (w - scale * WIDTH) / 2, (h - scale * HEIGHT) / 2, scale * WIDTH, scale * HEIGHT, 0, 0, WIDTH, HEIGHT);
  const { data } = small.getImageData(0, 0, WIDTH, HEIGHT), grey = new Uint8Array(WIDTH * HEIGHT);
  for (let i = 0; i < grey.length; i++) grey[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  return grey;
}

async function detect(window) {
  windows++;
  if (waiting) skipped++; // the network is slower than time: the newest window is the one to look at
  waiting = window;
  if (busy) return;
  busy = true;
  try {
    while (waiting) {
      const { counts, events } = waiting, began = performance.now();
      waiting = null;
      // A copy, because the worker may take the array over and the picture is drawn from it.
      const { boxes, scores, labels } = await session.run({ input: new ort.Tensor("uint8", counts.slice(), shape) });
      const ms = performance.now() - began;
      draw(counts, boxes.data, scores.data, labels.data);
      const late = skipped ? `; ${Math.round((100 * skipped) / windows)} % of the windows were skipped` : "";
      say(`${scores.data.length} boxes from ${events} events of ${WINDOW_MS} ms; the network took ${ms.toFixed(0)} ms${late}.`);
    }
  } catch (error) {
    say(`The network could not be run: ${error.message}`);
  } finally {
    busy = false;
  }
}

function draw(counts, boxes, scores, labels) {
  const picture = shownContext.createImageData(WIDTH, HEIGHT), { gridWidth, gridHeight, bins } = counter, plane = gridWidth * gridHeight;
  for (let y = 0, to = 0; y < HEIGHT; y++) {
    for (let x = 0; x < WIDTH; x++, to += 4) {
      let off = 0, on = 0;
      for (let bin = 0, at = y * gridWidth + x; bin < bins; bin++, at += plane) {
        off += counts[at];
        on += counts[at + bins * plane];
      }
      picture.data.set(on > off ? [232, 234, 237, 255] : off ? [88, 120, 168, 255] : [32, 36, 43, 255], to);
    }
  }
  shownContext.putImageData(picture, 0, 0);
  [canvas.width, canvas.height] = [SCALE * WIDTH, SCALE * HEIGHT];
  drawing.imageSmoothingEnabled = false;
  drawing.drawImage(shown, 0, 0, canvas.width, canvas.height);
  drawing.lineWidth = 2;
  drawing.font = "15px system-ui, sans-serif";
  for (let i = 0; i < scores.length; i++) {
    const [x0, y0, x1, y1] = Array.from(boxes.slice(4 * i, 4 * i + 4), (side) => side * SCALE), label = Number(labels[i]);
    drawing.strokeStyle = drawing.fillStyle = COLOURS[label];
    drawing.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const text = `${CLASSES[label]} ${scores[i].toFixed(2)}`, rightmost = canvas.width - drawing.measureText(text).width - 3;
    drawing.fillText(text, Math.max(0, Math.min(x0 + 3, rightmost)), y0 > 18 ? y0 - 5 : y0 + 16);
  }
}

async function show(stream) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  if (stream instanceof MediaStream) video.srcObject = stream;
  else [video.src, video.loop] = [URL.createObjectURL(stream), true];
  video.muted = video.playsInline = true;
  await video.play();
  begin();
}

element("camera").onclick = () =>
  navigator.mediaDevices
    ? navigator.mediaDevices.getUserMedia({ video: { frameRate: { ideal: 60 } } }).then(show).catch((error) => say(`The camera cannot be used: ${error.message}`))
    : say("Browsers give a camera only to pages of this computer (http://localhost) or of https.");
element("file").onchange = ({ target }) => {
  if (target.files.length) show(target.files[0]).catch((error) => say(`The video cannot be played: ${error.message}`));
  target.value = ""; // so that the same video can be chosen again
};
load().catch((error) => say(`The network cannot be loaded: ${error.message}. Was ${MODEL} exported into this folder, and onnxruntime-web installed?`));
