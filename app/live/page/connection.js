"use strict";
const RETRY_MS = 1000;
const TOKEN = new URLSearchParams(location.search).get("token");
let arrived = 0; // results over this connection
let socket = null, lostAt = 0, cause = ""; // cause: why there is no connection to a server that answers; else empty

function send(command) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  let refusal = "", opened = false;
  socket = new WebSocket(`${scheme}//${location.host}${ROOT}live${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    opened = true;
    arrived = 0;
    send({ received: arrived });
    cause = "";
    send({ inset, paused: pausedAt > 0 });
  };
  socket.onmessage = (event) => {
    if (typeof event.data !== "string") return receiveResult(event.data);
    const content = JSON.parse(event.data);
    if (content.error && !content.answer) refusal = `${content.error}. This page continues when one of them is closed.`;
    else receiveState(content);
  };
  socket.onclose = () => {
    stopCamera(false);
    if (!lostAt) lostAt = Date.now();
    showLost(refusal || cause);
    if (!opened) findCause();
    setTimeout(connect, RETRY_MS);
  };
}

function showLost(reason) {
  const age = shown ? ` The picture is from ${new Date(lostAt).toLocaleTimeString()}.` : "";
  setStatus(reason ? "not connected" : "connection lost, reconnecting", "");
  showCurtain(`${reason || "The server does not answer."}${age}`, "offline");
}

async function findCause() { // a browser does not say why a socket was refused, but it says so of a page
  let answer = {};
  try {
    answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
  } catch { /* the server does not answer */ }
  cause = "";
  if (TOKEN && answer.status === 403) cause = "The address of this page is out of date, because the server was restarted. Open the address that it printed.";
  if (answer.ok) cause = "The server answers, but the page's WebSocket is refused: a reverse proxy must pass it on, and evburst live must allow the page's host name with --allow-host.";
  if (lostAt) showLost(cause);
}
