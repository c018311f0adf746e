// The page: tabs, theme, and making a video.
import { call, follow, pause, seconds, submit } from "./api.js";
import { Compare } from "./compare.js";
import { History } from "./history.js";
import { Inputs } from "./inputs.js";
import { Live } from "./live.js";
import { Options } from "./options.js";
import { canStream, playStream } from "./player.js";

const $ = (id) => document.getElementById(id);
const TABS = ["create", "live", "compare", "history"];

function setUpTheme() {
  const set = (theme) => { document.documentElement.dataset.theme = theme; };
  set(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => { const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; set(theme); localStorage.setItem("theme", theme); });
}

function setUpTabs() {
  const show = (name) => {
    for (const tab of TABS) {
      const chosen = tab === name; const button = $(`tab-${tab}`);
      button.setAttribute("aria-selected", String(chosen)); button.tabIndex = chosen ? 0 : -1; $(`panel-${tab}`).hidden = !chosen;
    }
    document.querySelector('[data-panel="create"]').hidden = name !== "create";
    $("inputs").hidden = name === "history"; $("voice").hidden = name === "live"; $("main").dataset.tab = name;
    history.replaceState(null, "", `#${name}`);
  };
  for (const [number, tab] of TABS.entries()) {
    $(`tab-${tab}`).addEventListener("click", () => show(tab));
    $(`tab-${tab}`).addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) { const next = TABS[(number + step + TABS.length) % TABS.length]; show(next); $(`tab-${next}`).focus(); }
    });
  }
  show(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "create");
}

// Asks for the token until it is right.
async function login() {
  $("login").showModal();
  $("login").addEventListener("cancel", (event) => event.preventDefault());
  await new Promise((done) => $("login").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await call("/v1/login", { method: "POST", body: $("token").value }); $("login").close(); done(); } catch (error) { $("login-error").textContent = error.message; }
  }));
}

async function loadInfo() {
  for (;;) {
    try {
      const info = await call("/v1/info");
      if (info.failure) { $("notice").hidden = false; $("notice").textContent = info.failure; }
      return info;
    } catch (error) { if (error.status === 401) await login(); else await pause(1000); }
  }
}

class Maker {
  constructor(info, inputs, options, kept) {
    Object.assign(this, { info, inputs, options, kept });
    $("inputs").addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    $("cancel").addEventListener("click", () => this.cancel());
    $("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 2 ** 31); });
    $("video").addEventListener("playing", () => { $("poster").hidden = true; });
    $("video").addEventListener("loadeddata", () => { $("poster").hidden = true; });
    for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => { await navigator.clipboard.writeText($(button.dataset.copy).textContent); button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); });
  }

  say(text, isError = false) { $("state").textContent = text; $("state").classList.toggle("error", isError); }

  busy(on) { $("run").hidden = on; $("cancel").hidden = !on; $("spinner").hidden = !on; }

  async run() {
    this.busy(true); $("result").hidden = true; $("progress").value = 0; this.say("Sending …"); this.started = performance.now(); this.firstFrame = null;
    if (matchMedia("(max-width: 62rem)").matches) $("panel-create").scrollIntoView({ behavior: "smooth" });
    const stopped = this.stopped = new AbortController();
    try {
      const job = await submit(this.inputs.form({ ...this.options.values(), seed: $("seed").value || 0 }), () => this.say("Others are waiting, too: trying again …"));
      this.job = job.id;
      const streams = canStream(this.info.mime);
      if (streams) { playStream($("video"), this.info.mime, `/v1/videos/${job.id}/stream`, stopped.signal).catch(() => {}); this.play(); }
      const last = await follow(job.id, (state) => this.progress(state));
      if (last.state === "done") await this.finish(last, streams); else if (last.state === "failed") this.say(last.error.message, true); else this.say("Cancelled.");
      if (last.state !== "done") { stopped.abort(); this.clear(); }
    } catch (error) { this.say(`${error.field ? `${error.field}: ` : ""}${error.message.replace(`${error.field}: `, "")}`, true); }
    this.job = null; this.busy(false);
  }

  // Sound may only start after a click, which there was; without, silently.
  play() { $("video").muted = false; $("video").play().catch((error) => { if (error.name === "NotAllowedError") { $("video").muted = true; $("video").play().catch(() => {}); } }); }

  progress({ state, queue_position: position, progress }) {
    if (state === "queued") { this.say(position ? `Waiting: ${position} ahead.` : "Starting …"); return; }
    if (!progress) return;
    $("progress").value = progress.share;
    if (progress.frames_done && this.firstFrame === null) this.firstFrame = (performance.now() - this.started) / 1000;
    const elapsed = (performance.now() - this.started) / 1000; const left = progress.share > 0.02 ? ` · ${seconds((elapsed / progress.share) * (1 - progress.share))} left` : "";
    this.say(progress.frames_done ? `${progress.frames_done} of ${progress.num_frames} frames${left}` : `${progress.num_frames ? "Denoising" : "Looking at the files"} · ${Math.round(100 * progress.share)} %${left}`);
  }

  clear() { $("video").removeAttribute("src"); $("video").load(); $("poster").hidden = false; $("progress").value = 0; }

  async finish(last, streams) {
    const body = await call(`/v1/videos/${last.id}`); const base = `/v1/videos/${last.id}`;
    $("progress").value = 1;
    const taken = (performance.now() - this.started) / 1000;
    this.say(`${body.video.num_frames} frames in ${taken.toFixed(1)} s${this.firstFrame ? `, the first one after ${this.firstFrame.toFixed(1)} s` : ""}.`);
    const show = () => { $("video").src = `${base}/content`; };
    if (streams && !$("video").paused && !$("video").ended) $("video").addEventListener("ended", show, { once: true }); else show();
    if (!streams) this.play();
    $("download").href = `${base}/content`; $("download").download = `talking-${last.id.slice(0, 8)}.mp4`;
    $("sheet").src = $("sheet-link").href = `${base}/files/sheet`;
    $("facts").textContent = `${body.video.width} × ${body.video.height} px, ${body.video.fps} frames per second, ${body.video.duration_seconds.toFixed(1)} s`;
    $("command").textContent = body.command; $("api-call").textContent = body.api_call;
    for (const name of ["portrait", "audio", "kps"]) { $(`file-${name}`).href = `${base}/files/${name}`; $(`file-${name}`).download = ""; }
    $("file-kps-of").hidden = !body.command.includes("--kps_path");
    $("result").hidden = false;
    this.kept.add(last.id, `${body.video.num_frames} frames, seed ${$("seed").value}`);
  }

  async cancel() {
    this.say("Cancelling …");
    if (this.job) await call(`/v1/videos/${this.job}`, { method: "DELETE" }).catch(() => {});
  }
}

async function main() {
  setUpTheme(); setUpTabs();
  document.addEventListener("portrait", ({ detail }) => { for (const id of ["poster", "live-poster"]) $(id).src = detail; });
  const info = await loadInfo();
  $("model-name").textContent = `Model: ${info.model} on ${info.device}.`;
  if (!info.ready && !info.failure) {
    $("notice").hidden = false; $("notice").textContent = "The model is being loaded; videos are made as soon as it is there.";
    (async () => { for (;;) { await pause(1000); const now = await call("/v1/info").catch(() => null); if (now?.ready) { $("notice").hidden = true; return; } } })();
  }
  const initial = info.options.some(({ name }) => name === "sampling") ? { sampling: "rolling" } : {};
  const options = new Options(info, initial); const inputs = new Inputs(info); const kept = new History();
  new Maker(info, inputs, options, kept); new Live(info, inputs, options);
  new Compare(info, inputs, options, kept, () => $("seed").value || 0);
  document.body.dataset.ready = "true";
}

main();
