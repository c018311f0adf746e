// Speak into the microphone; the face answers.
import { StreamPlayer, canStream } from "./player.js";
import { Microphone } from "./recorder.js";

const $ = (id) => document.getElementById(id);
const LIVE_STEPS = 3;
const LIVE_FRAMES = 10; // of a window

export class Live {
  constructor(info, inputs, options) {
    Object.assign(this, { info, inputs, options });
    $("live-start").addEventListener("click", () => this.start());
    $("live-stop").addEventListener("click", () => this.stop());
    $("live-sound").addEventListener("change", () => { $("live-video").muted = !$("live-sound").checked; });
    if (info.live.factor > 1) this.tooSlow(info.live.factor);
    if (!info.limits.max_streams) { $("live-start").disabled = true; $("live-state").textContent = "Live streams are switched off on this server."; }
  }

  tooSlow(factor) {
    $("live-slow").hidden = false;
    $("live-slow").textContent = `This machine is ${factor.toFixed(1)} times too slow for live: a second of video takes ${factor.toFixed(1)} s to make. Fewer steps, a smaller size or a GPU help.`;
  }

  // What suits a stream, for options that the user left alone: short windows; on a slow machine one step without guidance.
  defaults() {
    const own = Object.fromEntries(this.options.table.map(({ name, default: value }) => [name, value]));
    const slow = this.info.live.factor > 0.9;
    const values = { num_inference_steps: Math.min(slow ? 1 : LIVE_STEPS, own.num_inference_steps), context_frames: Math.min(LIVE_FRAMES, own.context_frames) };
    values.context_overlap = Math.min(own.context_overlap, Math.floor(values.context_frames / 2) - 1);
    if (slow) values.guidance_scale = 1;
    return values;
  }

  async start() {
    $("live-start").hidden = true; $("live-stop").hidden = false; this.say("Asking for the microphone …");
    this.heard = null; this.began = null; this.jpeg = $("live-jpeg").checked || !canStream(this.info.mime);
    this.microphone = new Microphone();
    try { await this.microphone.open((pcm, level) => this.hear(pcm, level)); } catch (error) { this.stop(`No microphone: ${error.message}`); return; }
    const options = this.options.typed(); delete options.sampling;
    const values = { ...this.defaults(), ...options, ...(await this.inputs.live()) };
    if (values.retarget_strategy && !values.motion_example && !values.driving_video) delete values.retarget_strategy;
    const first = { type: "start", output: this.jpeg ? "jpeg" : "mp4", encoding: "pcm_s16le", sampling_rate: this.microphone.rate, channels: 1, ...values };
    const socket = this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify(first));
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.told(JSON.parse(data)) : this.show(data));
    socket.onclose = ({ reason }) => this.socket === socket && this.stop(this.problem ?? (reason || "The stream has ended."));
    this.problem = null; this.say("Connecting …");
  }

  hear(pcm, level) {
    $("live-level").value = level;
    if (this.heard === null || this.socket?.readyState !== WebSocket.OPEN) return;
    if (this.began === null) this.began = performance.now();
    this.heard += 1; this.socket.send(pcm);
  }

  told(message) {
    if (message.type === "ready") {
      this.heard = 0; this.fps = message.fps; $("live-poster").hidden = true;
      $("live-video").hidden = this.jpeg; $("live-canvas").hidden = !this.jpeg;
      if (this.jpeg) { $("live-canvas").width = message.width; $("live-canvas").height = message.height; }
      else { this.player = new StreamPlayer($("live-video"), message.mime, { live: true }); $("live-video").muted = !$("live-sound").checked; $("live-video").play().catch(() => {}); }
      this.say("Speak now.");
      const tick = () => { if (!this.socket) return; this.measure(); requestAnimationFrame(tick); };
      tick();
    } else if (message.type === "stats") {
      $("live-speed").textContent = `${(1 / message.factor).toFixed(2)} × real time`;
      if (message.factor > 1.05 && message.seconds > 2) this.tooSlow(message.factor); else if (message.factor < 0.98) $("live-slow").hidden = true;
    } else if (message.type === "error") this.problem = message.error.message;
  }

  async show(data) {
    if (!this.jpeg) { this.player.push(data); return; }
    this.shown = new DataView(data).getFloat64(0, true);
    const picture = await createImageBitmap(new Blob([data.slice(8)], { type: "image/jpeg" }));
    $("live-canvas").getContext("2d").drawImage(picture, 0, 0);
  }

  // From the sound at the microphone to the frame on the screen.
  measure() {
    const shown = this.jpeg ? this.shown : $("live-video").currentTime;
    if (!shown || this.began === null) return;
    const latency = (performance.now() - this.began) / 1000 - shown;
    $("live-latency").textContent = `${Math.max(0, latency).toFixed(2)} s`; $("live-time").textContent = `${shown.toFixed(1)} s`;
  }

  say(text) { $("live-state").textContent = text; }

  stop(why = "Stopped.") {
    const { socket } = this; this.socket = null;
    if (socket?.readyState === WebSocket.OPEN) socket.close();
    this.microphone?.close(); this.microphone = null; this.player?.close(); this.player = null; $("live-level").value = 0;
    $("live-start").hidden = false; $("live-stop").hidden = true; this.say(why);
  }
}
