// The page at `/`: asks the native API of the server it came from, and shows what it says. Owns the images that were added,
// the camera, and the history, which lives in this browser's IndexedDB and nowhere else.
//
// No text ever becomes HTML: elements come from the <template>s of the page and from createElement, and the page's policy
// (Trusted Types without a policy) lets nothing else happen.

const PARALLEL = 4; // requests at once: enough for the server to form batches of, few beside its other clients
const ATTEMPTS = 4; // of a request that is told to come later (503), as the clients of the README make
const MOST_IMAGES = 100; // a page to try things on; folders are for `fovea classify`
const MOST_ENTRIES = 500; // of the history: with their thumbnails about 2 MB
const ENTRIES_SHOWN = 25; // at first, and with each "Show more"
const PREVIEW_SIDE = 640; // pixels: a picture is shown at up to 320, on dense screens twice that
const THUMBNAIL_SIDE = 112; // shown at 56
const FRAME_SIDE = 640; // of a live image: more than most models take, little enough for a phone to encode ten times a second
const LOOK_EVERY_MS = 15_000; // at the models; their folder is looked at every 5 s
const LOOK_AGAIN_MS = 2_000; // while one of them is loading
const SAY_EVERY_MS = 3_000; // what a screen reader says of a live picture is over by then

const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
const score = (value) => (value >= 0 && value <= 1 ? percent.format(value) : value.toPrecision(4)); // a raw output may be anything
const clone = (id) => $(id).content.firstElementChild.cloneNode(true);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function show(part, text) {
  part.textContent = text ?? "";
  part.hidden = !text;
}

/** Bring `part` into view where it lies below it, as on a phone. */
function reveal(part) {
  if (part.getBoundingClientRect().top > innerHeight * 0.75) part.scrollIntoView();
}

/** Says `text` to who cannot see it. */
function announce(text) {
  $("announcer").textContent = text;
}

/** localStorage, where the browser lets us. */
const memory = {
  get(key) {
    try {
      return localStorage.getItem(`fovea.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`fovea.${key}`, value);
    } catch {
      // private windows may refuse: then the choice is made again next time
    }
  },
};

// The API

/** An answer that is an error: what to show of it, and what to do about it. */
class Refusal extends Error {
  constructor(status, problem, retryAfterSeconds) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? `http_${status}`;
    this.retryAfterMs = 1000 * (retryAfterSeconds || 1);
  }

  static async of(answer) {
    const problem = await answer.json().catch(() => ({})); // a proxy's own error page is no JSON
    return new Refusal(answer.status, problem, Number(answer.headers.get("Retry-After")));
  }
}

async function ask(path, options = {}) {
  try {
    return await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    refreshModels(); // which says so at the top, and notices when it is back
    throw new Refusal(0, { code: "unreachable", detail: "The server cannot be reached." });
  }
}

function classifyPath({ model, version, topK }) {
  const which = version ? `/versions/${encodeURIComponent(version)}` : "";
  return `api/v1/models/${encodeURIComponent(model)}${which}/classify${topK ? `?top_k=${topK}` : ""}`;
}

/** The answer to one image, and how long it took with the network. Throws Refusal. */
async function classifyOnce(choice, body, type, signal) {
  const headers = { "Content-Type": type };
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  const began = performance.now();
  const answer = await ask(classifyPath(choice), { method: "POST", body, headers, signal });
  if (!answer.ok) {
    if (answer.status === 401) $("token-field").hidden = false;
    throw await Refusal.of(answer);
  }
  const said = await answer.json();
  return { ...said, roundTrip: performance.now() - began };
}

/** The same, coming back as often as a busy server asks for it. */
async function classify(choice, body, type, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await classifyOnce(choice, body, type, signal);
    } catch (error) {
      if (error.status !== 503 || attempt === ATTEMPTS) throw error;
      await pause(error.retryAfterMs);
      signal?.throwIfAborted();
    }
  }
}

// Models

let models = [];
let shownModels = "";
let nextLook = 0;

async function refreshModels() {
  clearTimeout(nextLook);
  try {
    const answer = await fetch(new URL("api/v1/models", document.baseURI));
    if (!answer.ok) throw await Refusal.of(answer);
    ({ models } = await answer.json());
    showService(`${models.filter((model) => model.ready).length} of ${count(models.length, "model")} ready`);
  } catch (error) {
    showService(error instanceof Refusal ? error.message : "The server cannot be reached", "down");
  }
  if (JSON.stringify(models) !== shownModels) showModels(); // an open list is not pulled away from under a hand
  const loading = models.some((model) => model.versions.some(({ state }) => state === "LOADING"));
  if (!document.hidden) nextLook = setTimeout(refreshModels, loading ? LOOK_AGAIN_MS : LOOK_EVERY_MS);
}

function showService(text, state) {
  $("service").textContent = text;
  $("service").dataset.state = state ?? (models.some((model) => model.ready) ? "ready" : "waiting");
}

const modelNamed = (name) => models.find((model) => model.name === name);
const takesImages = (model) => model?.ready && model.input !== undefined;

/** What is asked for: the model, the version ("" is the model's own choice), how many labels. */
function chosen() {
  const topK = Math.min(100, Math.max(1, Math.round(Number($("top-k").value)) || 5)); // what the API takes
  return { model: $("model").value, version: $("version").value, topK };
}

function showModels() {
  shownModels = JSON.stringify(models);
  const before = $("model").value || memory.get("model");
  const inColor = (model) => takesImages(model) && model.input.color !== "gray"; // as what people try first: photographs
  const pick = modelNamed(before) ?? models.find(inColor) ?? models.find(takesImages) ?? models[0];
  const remark = (model) => (takesImages(model) ? "" : model.ready ? " (tensors only)" : " (not ready)");
  $("model").replaceChildren(...models.map((model) => new Option(model.name + remark(model), model.name)));
  if (pick) $("model").value = pick.name;
  showModel();
}

function showModel() {
  const model = modelNamed($("model").value);
  const before = $("version").value;
  const versions = model?.versions ?? [];
  const own = model?.default_version ? `Default (${model.default_version})` : "Default";
  const options = versions.map(({ version, state }) => {
    const option = new Option(version + (state === "READY" ? "" : ` (${state.toLowerCase()})`), version);
    option.disabled = state !== "READY";
    return option;
  });
  $("version").replaceChildren(new Option(own, ""), ...options);
  if (options.some((option) => option.value === before && !option.disabled)) $("version").value = before;
  $("facts").replaceChildren(...facts(model).map((fact) => element("li", fact)));
  $("open-card").disabled = !model;
  show($("model-problem"), modelProblem(model));
  showChoice();
}

function facts(model) {
  if (!model?.task) return [];
  const provider = model.versions.find(({ version }) => version === model.default_version)?.provider;
  return [model.task, count(model.num_labels, "label"), inputSize(model.input), provider].filter(Boolean);
}

/** "224 × 224 rgb" of an input whose layout says which numbers are its sides. */
function inputSize(input) {
  if (!input) return "";
  const at = (axis) => input.shape[input.layout.indexOf(axis)];
  return `${at("h")} × ${at("w")} ${input.color}`;
}

function modelProblem(model) {
  if (!model) return "There is no model here yet: put one into the server's model repository.";
  if (!model.ready) return `${model.name} is not ready: ${model.reason}.`;
  if (!model.input) return `${model.name} takes tensors, not images; its manifest describes no preprocessing.`;
  return "";
}

/** Everything that depends on what is chosen. */
function showChoice() {
  showPredict();
  showCurl();
}

function showCurl() {
  const url = new URL(classifyPath(chosen()), document.baseURI);
  const last = images.at(-1);
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const name = last?.name ?? "photo.jpg";
  const file = /^[\w.-]+$/.test(name) ? `@${name}` : quoted(`@${name}`);
  const token = $("token").value ? " -H 'Authorization: Bearer '\"$TOKEN\"" : "";
  $("curl").textContent = `curl --data-binary ${file} -H 'Content-Type: ${last?.type ?? "image/jpeg"}'${token} \\\n  ${quoted(url.href)}`;
}

// Images

let images = []; // {name, type, file, preview, thumbnail, part, asked, failed}: `asked` is the choice that was answered last

const startsWith = (bytes, text) => [...text].every((letter, index) => bytes[index] === letter.charCodeAt(0));

/** What the bytes are; a file's name may say anything. */
async function imageType(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  if (startsWith(bytes, "\xff\xd8\xff")) return "image/jpeg";
  if (startsWith(bytes, "\x89PNG")) return "image/png";
  if (startsWith(bytes, "RIFF") && startsWith(bytes.slice(8), "WEBP")) return "image/webp";
  return file.type.startsWith("image/") ? file.type : null; // the server says what it takes
}

/** `source` on a canvas, its longer side at most `side` pixels; what is transparent white, as the server has it. */
function drawn(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const jpegOf = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));

/** A picture to show and one for the history; nothing where this browser cannot decode what the server may. */
async function picturesOf(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const { width, height } = bitmap;
    const preview = await jpegOf(drawn(bitmap, width, height, PREVIEW_SIDE));
    const thumbnail = await jpegOf(drawn(bitmap, width, height, THUMBNAIL_SIDE));
    bitmap.close();
    return { preview, thumbnail, tiny: Math.max(width, height) < 100 };
  } catch {
    return {};
  }
}

/** Add files, one after the other: a hundred photographs decoded at once would not fit a phone. */
async function addImages(files) {
  const skipped = [];
  for (const file of files) {
    const type = await imageType(file).catch(() => null); // a folder has no bytes
    if (!type) {
      skipped.push(`${file.name} is not an image`);
    } else if (images.length >= MOST_IMAGES) {
      skipped.push(`${file.name}: ${MOST_IMAGES} images are the most this page takes; for folders there is “fovea classify”`);
    } else {
      await addImage(file, type);
    }
  }
  const rest = skipped.length > 3 ? `; and ${skipped.length - 3} more` : "";
  show($("notice"), skipped.length ? `Left out: ${skipped.slice(0, 3).join("; ")}${rest}.` : "");
  if (files.length > skipped.length) announce(`${count(images.length, "image")} to predict`);
}

async function addImage(file, type) {
  const part = clone("image-card");
  const image = { name: file.name || "pasted image", type, file, part, ...(await picturesOf(file)) };
  images.push(image);
  part.querySelector("h3").textContent = image.name;
  part.querySelector(".state").textContent = "Not predicted yet";
  const remove = part.querySelector(".remove");
  remove.setAttribute("aria-label", `Remove ${image.name}`);
  remove.addEventListener("click", () => removeImage(image));
  const picture = part.querySelector("img");
  if (image.preview) {
    image.url = URL.createObjectURL(image.preview);
    picture.src = image.url;
    picture.alt = image.name;
    picture.classList.toggle("tiny", image.tiny);
  } else {
    picture.replaceWith(element("p", "no preview", { class: "small" }));
  }
  $("cards").append(part);
  showImages();
}

function removeImage(image) {
  const next = image.part.nextElementSibling ?? image.part.previousElementSibling;
  forget(image);
  images = images.filter((other) => other !== image);
  showImages();
  (next?.querySelector(".remove") ?? $("choose")).focus(); // the button that had it is gone
}

function forget(image) {
  image.part.remove();
  if (image.url) URL.revokeObjectURL(image.url);
}

function removeAll() {
  images.forEach(forget);
  images = [];
  showImages();
  $("choose").focus();
}

function showImages() {
  $("empty").hidden = images.length > 0 || !$("camera").hidden;
  $("remove-all").hidden = images.length < 2;
  showChoice();
}

// Predicting

let running = null; // the AbortController of what is under way
const keyOf = ({ model, version, topK }) => JSON.stringify([model, version, topK]);

/** What has no answer yet from what is chosen. */
const waiting = () => images.filter((image) => image.asked !== keyOf(chosen()));

function showPredict(done, of) {
  const button = $("predict");
  const left = waiting().length;
  button.disabled = !running && (!images.length || !takesImages(modelNamed($("model").value)));
  if (running) button.textContent = of > 1 ? `Stop (${done} of ${of})` : "Stop";
  else if (!images.length) button.textContent = "Predict";
  else button.textContent = left ? `Predict ${count(left, "image")}` : "Predict again";
}

/** Ask about every image that waits, or about all of them again; a few at a time. */
async function predict() {
  if (running) {
    running.abort();
    return;
  }
  running = new AbortController();
  const { signal } = running;
  const choice = chosen();
  const asked = waiting().length ? waiting() : [...images];
  const queue = [...asked];
  let done = 0;
  showPredict(done, asked.length);
  reveal($("results-title"));
  for (const { part } of asked) part.querySelector(".state").textContent = "Waiting";
  const work = async () => {
    for (let image = queue.shift(); image && !signal.aborted; image = queue.shift()) {
      await predictOne(image, choice, signal);
      showPredict(++done, asked.length);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
  for (const image of queue) image.part.querySelector(".state").textContent = "Stopped";
  running = null;
  showPredict();
  showHistory();
  announce(summary(asked));
}

async function predictOne(image, choice, signal) {
  image.part.setAttribute("aria-busy", "true");
  try {
    const answer = await classify(choice, image.file, image.type, signal);
    image.asked = keyOf(choice);
    showAnswer(image, answer);
    await remember(image, answer);
  } catch (error) {
    image.asked = null;
    showFailure(image, error);
  }
  image.part.removeAttribute("aria-busy");
}

function summary(asked) {
  const answered = asked.filter((image) => image.best);
  const failed = asked.length - answered.length;
  const said = answered.slice(0, 3).map(({ name, best }) => `${name}: ${best.label}, ${score(best.score)}`);
  return [...said, failed ? `${failed} without an answer` : ""].filter(Boolean).join(". ") || "No label reached the bar";
}

function showAnswer(image, answer) {
  const { predictions } = answer.results[0];
  const { part } = image;
  image.best = predictions[0];
  part.querySelector(".state").textContent = `${answer.model} · version ${answer.version}`;
  show(part.querySelector(".problem"));
  showLabels(part.querySelector(".labels"), predictions);
  showTiming(part.querySelector(".timing"), answer);
}

function showFailure(image, error) {
  const { part } = image;
  const stopped = error.name === "AbortError";
  image.best = null;
  part.querySelector(".state").textContent = stopped ? "Stopped" : "No answer";
  show(part.querySelector(".problem"), stopped ? "" : `${error.message} (${error.code ?? error.name})`);
  part.querySelector(".labels").replaceChildren();
  part.querySelector(".timing").hidden = true;
}

/** Ranked labels, in the rows that are there: a live list changes its figures, not its elements. */
function showLabels(list, predictions) {
  while (list.children.length > predictions.length) list.lastElementChild.remove();
  while (list.children.length < predictions.length) list.append(clone("label-row"));
  predictions.forEach((best, index) => {
    const row = list.children[index];
    row.querySelector(".name").textContent = best.label;
    row.querySelector(".score").textContent = score(best.score);
    row.querySelector(".bar").style.setProperty("--score", Math.min(1, Math.max(0, best.score)));
  });
}

/** Where the time went: in the server, stage by stage, and on the way there and back. */
function showTiming(part, { timings_ms: timings, roundTrip }) {
  const { decode, queue, infer, total } = timings;
  const rest = total - decode - queue - infer;
  const stages = Object.entries({ decode, queue, inference: infer, rest, network: roundTrip - total });
  const spans = stages.map(([name, value]) => {
    const span = element("i", "", { class: name });
    span.style.flexGrow = Math.max(0, value);
    return span;
  });
  const legend = stages.map(([name, value]) => element("li", `${name} ${milliseconds(Math.max(0, value))}`, { class: name }));
  part.querySelector("p").textContent = `${milliseconds(total)} in the server, ${milliseconds(roundTrip)} seen from here`;
  part.querySelector(".spans").replaceChildren(...spans);
  part.querySelector(".stages").replaceChildren(...legend);
  part.hidden = false;
}

// Camera

const camera = { stream: null, timer: 0, busy: false, skipped: 0, notBefore: 0, answeredAt: [], said: "", saidAt: 0 };

async function openCamera(deviceId) {
  if (!navigator.mediaDevices?.getUserMedia) {
    $("capture").click(); // browsers open cameras to pages only over HTTPS and on this machine; a phone's own camera still works
    return;
  }
  closeStream();
  const video = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "environment" } };
  try {
    camera.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    show($("notice"), denied ? "This page may not use the camera: allow it in the browser's site settings." : `No camera could be opened: ${error.message}`);
    closeCamera();
    return;
  }
  const [track] = camera.stream.getVideoTracks();
  track.addEventListener("ended", () => {
    show($("notice"), "The camera has gone.");
    closeCamera();
  });
  show($("notice"));
  $("video").srcObject = camera.stream;
  await $("video").play(); // from here on there is something to photograph
  $("camera").hidden = false;
  await showDevices(track.getSettings().deviceId);
  showImages();
  reveal($("camera"));
}

async function showDevices(current) {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  $("device-field").hidden = devices.length < 2;
  $("device").replaceChildren(...devices.map(({ label, deviceId }, index) => new Option(label || `Camera ${index + 1}`, deviceId)));
  $("device").value = current;
}

function closeStream() {
  camera.stream?.getTracks().forEach((track) => track.stop());
  camera.stream = null;
}

function closeCamera() {
  stopLive();
  closeStream();
  const had = $("camera").contains(document.activeElement);
  $("camera").hidden = true;
  $("video").srcObject = null;
  showImages();
  if (had) $("open-camera").focus();
}

const frame = (side) => drawn($("video"), $("video").videoWidth, $("video").videoHeight, side);

async function takePhoto() {
  const blob = await jpegOf(frame(Infinity));
  const at = new Date().toISOString().slice(0, 19).replaceAll(":", ".");
  await addImages([new File([blob], `photo ${at}.jpg`, { type: blob.type })]);
}

function toggleLive() {
  if (camera.timer) stopLive();
  else startLive();
}

/** One image every 1/rate seconds. A tick that finds the last one unanswered passes: nothing ever waits in line here. */
function startLive() {
  stopLive();
  Object.assign(camera, { skipped: 0, notBefore: 0, answeredAt: [] });
  camera.timer = setInterval(tick, 1000 / Number($("rate").value));
  $("live").setAttribute("aria-pressed", "true");
  $("live").textContent = "Stop live";
}

function stopLive() {
  clearInterval(camera.timer);
  camera.timer = 0;
  $("live").setAttribute("aria-pressed", "false");
  $("live").textContent = "Classify live";
  $("live-verdict").textContent = "";
}

async function tick() {
  if (document.hidden || !takesImages(modelNamed($("model").value))) return;
  if (camera.busy || performance.now() < camera.notBefore) {
    camera.skipped++;
    return;
  }
  camera.busy = true;
  try {
    const answer = await classifyOnce(chosen(), await jpegOf(frame(FRAME_SIDE)), "image/jpeg");
    if (camera.timer) showLive(answer);
  } catch (error) {
    if (error.status === 503) camera.notBefore = performance.now() + error.retryAfterMs;
    $("live-figures").textContent = error.message;
  } finally {
    camera.busy = false;
  }
}

function showLive(answer) {
  const { predictions } = answer.results[0];
  const now = performance.now();
  camera.answeredAt = [...camera.answeredAt.filter((at) => now - at < 3000), now];
  const seconds = (now - camera.answeredAt[0]) / 1000;
  const rate = seconds ? `${((camera.answeredAt.length - 1) / seconds).toFixed(1)} a second` : "first image";
  $("live-figures").textContent = `${answer.model} ${answer.version} · ${rate} · ${milliseconds(answer.roundTrip)} each · ${camera.skipped} skipped while busy`;
  showLabels($("live-labels"), predictions);
  const best = predictions[0];
  $("live-verdict").textContent = best ? `${best.label} ${score(best.score)}` : "";
  if (best && best.label !== camera.said && now - camera.saidAt > SAY_EVERY_MS) {
    Object.assign(camera, { said: best.label, saidAt: now });
    announce(`${best.label}, ${score(best.score)}`);
  }
}

// History

let entries = []; // newest first
let entriesShown = ENTRIES_SHOWN;
let entryUrls = [];
let store = null; // null where the browser keeps nothing for us: then the history ends with the page

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function openHistory() {
  try {
    const opening = indexedDB.open("fovea", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("predictions", { keyPath: "id", autoIncrement: true });
    store = await settled(opening);
    await readHistory();
  } catch {
    store = null;
    showHistory();
  }
}

const shelf = (mode) => store.transaction("predictions", mode).objectStore("predictions");

/** All of it, which other tabs may have changed. */
async function readHistory() {
  if (!store) return;
  entries = (await settled(shelf("readonly").getAll())).reverse();
  showHistory();
}

async function remember(image, answer) {
  const entry = {
    time: new Date().toISOString(),
    image: image.name,
    model: answer.model,
    version: answer.version,
    labels: answer.results[0].predictions,
    timings_ms: answer.timings_ms,
    request_id: answer.request_id,
    thumbnail: image.thumbnail ?? null,
  };
  entries.unshift(entry);
  const over = entries.splice(MOST_ENTRIES);
  if (!store) return;
  try {
    entry.id = await settled(shelf("readwrite").add(entry));
    for (const { id } of over) if (id) await settled(shelf("readwrite").delete(id));
  } catch (error) {
    show($("notice"), `The history could not be written: ${error.message}`); // no room left, most likely
  }
}

async function clearHistory() {
  $("confirm").close();
  if (store) await settled(shelf("readwrite").clear());
  entries = [];
  $("search").value = "";
  showHistory();
  $("history-title").focus(); // the button that had it is gone
  announce("The history is cleared");
}

/** Entries in which every word of the search stands. */
function found() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const textOf = ({ image, model, version, labels }) =>
    [image, model, `version ${version}`, ...labels.map(({ label }) => label)].join(" ").toLowerCase();
  return entries.filter((entry) => words.every((word) => textOf(entry).includes(word)));
}

function showHistory() {
  const matching = found();
  entryUrls.forEach((url) => URL.revokeObjectURL(url));
  entryUrls = [];
  $("entries").replaceChildren(...matching.slice(0, entriesShown).map(entryPart));
  const where = store ? "kept in this browser only" : "kept until this page is closed";
  $("history-count").textContent = entries.length ? `${count(entries.length, "prediction")}, ${where}` : `Empty; ${where}`;
  $("history-controls").hidden = !entries.length;
  $("more").hidden = matching.length <= entriesShown;
  const nothing = entries.length ? "Nothing in the history has all of these words." : "Each prediction is listed here, with its picture, until you clear it.";
  show($("history-empty"), matching.length ? "" : nothing);
}

function entryPart(entry) {
  const part = clone("history-entry");
  const [best, ...rest] = entry.labels;
  const picture = part.querySelector("img");
  if (entry.thumbnail) {
    const url = URL.createObjectURL(entry.thumbnail);
    entryUrls.push(url);
    picture.src = url;
  } else {
    picture.remove();
  }
  part.querySelector("strong").textContent = best?.label ?? "no label";
  part.querySelector(".score").textContent = best ? score(best.score) : "";
  part.querySelector(".others").textContent = rest.map(({ label, score: value }) => `${label} ${score(value)}`).join(", ");
  part.querySelector(".by").textContent = `${entry.model} · version ${entry.version} · ${entry.image}`;
  const time = part.querySelector("time");
  time.dateTime = entry.time;
  time.textContent = moment.format(new Date(entry.time));
  return part;
}

/** What a search left, as both exports have it. */
const exported = () => found().map(({ id, thumbnail, ...entry }) => entry);

/** A field of a CSV file; a spreadsheet would run one that begins like a formula. */
function csvField(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const head = ["time", "image", "model", "version", "rank", "label", "index", "score", "total_ms", "request_id"];
  const rows = exported().flatMap(({ time, image, model, version, labels, timings_ms: timings, request_id: id }) =>
    labels.map(({ label, index, score: value }, rank) => [time, image, model, version, rank + 1, label, index, value, timings.total, id]),
  );
  return [head, ...rows].map((row) => row.map(csvField).join(",") + "\r\n").join("");
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", "", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun long before
}

// Model card

async function openCard() {
  const model = modelNamed($("model").value);
  $("card-title").textContent = model.name;
  $("versions").replaceChildren(...model.versions.map(versionPart));
  $("signature").replaceChildren(...signature(model).flatMap(([term, text]) => [element("dt", term), element("dd", text)]));
  $("card-text").replaceChildren(element("p", model.card ? "Reading the card" : "This model has no card: there is no README.md in its folder."));
  $("card").showModal();
  $("card").querySelector(".scroll").scrollTop = 0;
  if (!model.card) return;
  try {
    const answer = await ask(`api/v1/models/${encodeURIComponent(model.name)}/card`);
    if (!answer.ok) throw await Refusal.of(answer);
    $("card-text").replaceChildren(markdown(await answer.text(), model.name));
  } catch (error) {
    $("card-text").replaceChildren(element("p", error.message, { class: "problem" }));
  }
}

function versionPart({ version, state, reason, provider, provider_fallback: fallback, instances, sha256 }) {
  const part = clone("version-row");
  part.querySelector("strong").textContent = `Version ${version}`;
  part.querySelector(".badge").textContent = state;
  part.querySelector(".badge").dataset.state = state;
  part.querySelector(".on").textContent = provider ? `on ${provider}, ${count(instances, "instance")}` : "";
  show(part.querySelector(".why"), reason ?? fallback);
  show(part.querySelector(".sha"), sha256 && `SHA-256 ${sha256}`);
  return part;
}

function signature({ name, ready, reason, task, num_labels: labels, input, batching }) {
  const rows = [["Ready", ready ? "yes" : `no: ${reason}`]];
  if (task) rows.push(["Task", `${task}, ${count(labels, "label")}`]);
  if (input) {
    rows.push(["Input", `${inputSize(input)}, ${input.dtype}, ${input.layout.toUpperCase()}`]);
    rows.push(["Preprocessing", `${input.resize.replaceAll("_", " ")}, ${input.decode} decoding`]);
  } else if (ready) {
    rows.push(["Input", "tensors only"]);
  }
  if (batching) rows.push(["Batches", `up to ${batching.max_batch_size}, ${batching.max_queue_size} may queue`]);
  return [...rows, ["Address", new URL(classifyPath({ model: name }), document.baseURI).href]];
}

/** Markdown as cards use it: headings, paragraphs, lists, tables, code, emphasis, links to the web. The rest stays text. */
function markdown(text, title) {
  const made = document.createDocumentFragment();
  const lines = text.replace(/<!--[\s\S]*?-->/g, "").split(/\r?\n/);
  const depths = []; // of the headings above, so that no level is left out whatever the card begins with
  const blocks = [
    [/^\s*$/, () => lines.shift()],
    [/^\s*```/, () => made.append(codeBlock(lines))],
    [/^#{1,6}\s/, () => made.append(...heading(lines.shift(), depths, title))],
    [/^\s*\|.*\|\s*$/, () => made.append(table(take(lines, /^\s*\|/)))],
    [/^\s*([-*+]|\d+[.)])\s/, () => made.append(list(take(lines, /\S/)))],
    [/^\s*(-{3,}|\*{3,})\s*$/, () => lines.shift()],
    [/^>/, () => made.append(element("blockquote", take(lines, /^>/).map((line) => line.replace(/^>\s?/, "")).join(" ")))],
    [/./, () => made.append(inline(element("p"), [lines.shift(), ...take(lines, /^(?!\s*```|#{1,6}\s|\s*\||\s*[-*+]\s)\s*\S/)].join(" ")))],
  ];
  while (lines.length) blocks.find(([begins]) => begins.test(lines[0]))[1]();
  return made;
}

function take(lines, wanted) {
  const end = lines.findIndex((line) => !wanted.test(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function codeBlock(lines) {
  lines.shift();
  const code = take(lines, /^(?!\s*```)/);
  lines.shift();
  const block = element("pre", "", { tabindex: "0" });
  block.append(element("code", code.join("\n")));
  return block;
}

function heading(line, depths, title) {
  const [, marks, text] = line.match(/^(#+)\s+(.*?)\s*#*$/) ?? [null, "#", line];
  if (text === title && !depths.length) return []; // the dialog has it
  while (depths.length && depths.at(-1) >= marks.length) depths.pop();
  depths.push(marks.length);
  return [inline(element(`h${Math.min(6, 2 + depths.length)}`), text)];
}

function list(lines) {
  const made = element(/^\s*\d/.test(lines[0]) ? "ol" : "ul");
  for (const line of lines) {
    const [, item] = line.match(/^\s*(?:[-*+]|\d+[.)])\s+(.*)$/) ?? [];
    if (item !== undefined) made.append(inline(element("li"), item));
    else inline(made.lastElementChild, ` ${line.trim()}`); // goes on from the line above
  }
  return made;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (line, name, attributes) => {
    const made = element("tr");
    made.append(...cells(line).map((cell) => inline(element(cell ? name : "td", "", cell ? attributes : {}), cell)));
    return made;
  };
  const [head, ...body] = lines.filter((line) => !/^[\s|:-]+$/.test(line)); // without the rule between them
  const made = element("table");
  const thead = element("thead");
  const tbody = element("tbody");
  thead.append(row(head, "th", { scope: "col" }));
  tbody.append(...body.map((line) => row(line, "td")));
  made.append(thead, tbody);
  const frame = element("div", "", { class: "wide-table", tabindex: "0", role: "group", "aria-label": "Table" });
  frame.append(made);
  return frame;
}

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<!\w)[*_](.+?)[*_](?!\w)|\[([^\]]+)\]\(((?:[^()\s]|\([^()\s]*\))+)\)|<?(https?:\/\/[^\s<>)]+)>?/;

function inline(parent, text) {
  const match = INLINE.exec(text);
  if (!match) {
    parent.append(text);
    return parent;
  }
  const [all, , code, strong, emphasis, label, target, address] = match;
  parent.append(text.slice(0, match.index));
  if (code) parent.append(element("code", code));
  else if (strong) parent.append(inline(element("strong"), strong));
  else if (emphasis) parent.append(inline(element("em"), emphasis));
  else parent.append(link(label ?? address, target ?? address));
  return inline(parent, text.slice(match.index + all.length));
}

/** A link to the web; files beside the card are not served, so their names stay names. */
function link(text, target) {
  return /^https?:\/\//.test(target) ? element("a", text, { href: target, rel: "noopener noreferrer", target: "_blank" }) : text;
}

// Start

async function paste() {
  try {
    const items = await navigator.clipboard.read();
    const kinds = items.map((item) => [item, item.types.find((type) => type.startsWith("image/"))]);
    const files = kinds.filter(([, type]) => type).map(async ([item, type]) => new File([await item.getType(type)], "pasted image", { type }));
    if (files.length) await addImages(await Promise.all(files));
    else show($("notice"), "The clipboard holds no image.");
  } catch {
    show($("notice"), "This page may not read the clipboard: press Ctrl+V (or ⌘V) instead.");
  }
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    announce("Copied");
    $("copy-curl").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("curl")); // without the permission: ready for Ctrl+C
  }
  setTimeout(() => ($("copy-curl").textContent = "Copy"), 2000);
}

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function listen() {
  const on = (id, kind, handler) => $(id).addEventListener(kind, handler);
  on("skip", "click", (event) => {
    event.preventDefault(); // the page's base is not always its own address
    $("main").focus();
  });
  on("model", "change", () => {
    memory.set("model", $("model").value);
    showModel();
  });
  for (const id of ["version", "top-k"]) on(id, "change", showChoice);
  on("token", "input", showCurl);
  for (const id of ["choose", "capture"]) {
    on(id, "change", async ({ target }) => {
      const files = [...target.files];
      target.value = ""; // so that the same file can be chosen again
      await addImages(files);
    });
  }
  on("paste", "click", paste);
  on("predict", "click", predict);
  on("remove-all", "click", removeAll);
  on("copy-curl", "click", copyCurl);
  on("open-camera", "click", () => openCamera());
  on("close-camera", "click", closeCamera);
  on("device", "change", () => openCamera($("device").value));
  on("snap", "click", takePhoto);
  on("live", "click", toggleLive);
  on("rate", "change", () => camera.timer && startLive());
  on("search", "input", () => {
    entriesShown = ENTRIES_SHOWN;
    showHistory();
  });
  on("more", "click", () => {
    entriesShown += ENTRIES_SHOWN;
    showHistory();
  });
  on("export-csv", "click", () => download("fovea-history.csv", "text/csv", csv()));
  on("export-json", "click", () => download("fovea-history.json", "application/json", JSON.stringify(exported(), null, 2)));
  on("clear", "click", () => {
    $("confirm-text").textContent = `${count(entries.length, "prediction")} will be gone from this browser. Nobody else has them.`;
    $("confirm").showModal();
  });
  on("confirm-no", "click", () => $("confirm").close());
  on("confirm-yes", "click", clearHistory);
  on("open-card", "click", openCard);
  on("close-card", "click", () => $("card").close());
  listenToDocument();
}

function listenToDocument() {
  const over = (is) => $("drop").classList.toggle("over", is);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // else the browser would leave the page for the file
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? over(false));
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    over(false);
    addImages([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return; // text, into a field
    event.preventDefault();
    addImages(files);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    refreshModels();
    readHistory();
  });
  addEventListener("pagehide", closeCamera);
}

async function showVersion() {
  const answer = await ask("./", { headers: { Accept: "application/json" } });
  const { version } = await answer.json();
  $("about").textContent = `Fovea ${version}`;
}

listen();
$("paste").hidden = !navigator.clipboard?.read;
showImages();
await Promise.allSettled([refreshModels(), openHistory(), showVersion()]);
