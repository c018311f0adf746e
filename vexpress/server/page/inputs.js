// Portrait, voice and motion: what was chosen, and how it is shown.
import { call } from "./api.js";
import { Microphone, toWav } from "./recorder.js";

const $ = (id) => document.getElementById(id);
const example = (kind, name) => `/v1/examples/${kind}/${encodeURIComponent(name)}`;

export class Inputs {
  constructor(info) {
    this.info = info; this.portrait = null; this.recording = null;
    this.setUpPortrait(); this.setUpVoice(); this.setUpMotion();
  }

  // ---- portrait
  setUpPortrait() {
    for (const [number, name] of this.info.examples.portrait.entries()) {
      const button = document.createElement("button"); const image = document.createElement("img");
      button.type = "button"; button.setAttribute("aria-pressed", "false"); image.src = example("portrait", name); image.alt = `Example face ${number + 1}`;
      button.append(image); button.addEventListener("click", () => this.choose({ name })); button.dataset.name = name;
      $("portrait-examples").append(button);
    }
    $("portrait-upload").addEventListener("click", () => $("portrait-file").click());
    $("drop").addEventListener("click", () => (this.camera ? this.shoot() : $("portrait-file").click()));
    $("drop").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("drop").click(); } });
    $("portrait-file").addEventListener("change", () => $("portrait-file").files[0] && this.choose({ file: $("portrait-file").files[0] }));
    for (const type of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(type, (event) => {
      event.preventDefault(); $("drop").classList.toggle("over", type === "dragover");
      if (type === "drop" && event.dataTransfer.files[0]) this.choose({ file: event.dataTransfer.files[0] });
    });
    document.addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (file) this.choose({ file });
    });
    $("portrait-camera").addEventListener("click", () => (this.camera ? this.shoot() : this.openCamera()));
    $("auto-crop").addEventListener("change", () => this.showCrop());
    if (this.info.examples.portrait.length) this.choose({ name: this.info.examples.portrait[0] });
  }

  async openCamera() {
    try { this.camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } }); } catch (error) { $("portrait-note").textContent = `No camera: ${error.message}`; return; }
    $("camera").srcObject = this.camera; $("camera").hidden = false; await $("camera").play();
    $("portrait-camera").textContent = "Take it"; $("crop").hidden = true;
  }

  async shoot() {
    const canvas = document.createElement("canvas"); canvas.width = $("camera").videoWidth; canvas.height = $("camera").videoHeight;
    canvas.getContext("2d").drawImage($("camera"), 0, 0);
    this.closeCamera();
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    this.choose({ file: new File([blob], "camera.png", { type: "image/png" }) });
  }

  closeCamera() {
    this.camera?.getTracks().forEach((track) => track.stop()); this.camera = null;
    $("camera").hidden = true; $("camera").srcObject = null; $("portrait-camera").textContent = "Camera";
  }

  async choose(portrait) {
    this.closeCamera();
    if (this.portrait?.url?.startsWith("blob:")) URL.revokeObjectURL(this.portrait.url);
    this.portrait = { ...portrait, url: portrait.file ? URL.createObjectURL(portrait.file) : example("portrait", portrait.name) };
    for (const button of $("portrait-examples").children) button.setAttribute("aria-pressed", String(button.dataset.name === portrait.name));
    $("portrait-image").src = this.portrait.url; $("portrait-image").hidden = false; $("drop-hint").hidden = true; $("crop").hidden = true;
    $("auto-crop").checked = Boolean(portrait.file); $("portrait-note").textContent = "Looking for the face …"; $("portrait-note").classList.remove("error");
    document.dispatchEvent(new CustomEvent("portrait", { detail: this.portrait.url }));
    const form = new FormData();
    if (portrait.file) form.append("portrait", portrait.file, "portrait"); else form.append("portrait_example", portrait.name);
    const asked = this.portrait;
    try {
      const found = await call("/v1/portrait", { method: "POST", body: form });
      if (asked !== this.portrait) return;
      this.portrait.found = found;
      $("portrait-note").textContent = `${found.width} × ${found.height} px, ${found.num_faces === 1 ? "one face" : `${found.num_faces} faces; the largest is used`}`;
      this.showCrop();
    } catch (error) {
      if (asked !== this.portrait) return;
      $("portrait-note").textContent = error.message; $("portrait-note").classList.add("error");
    }
  }

  showCrop() {
    const found = this.portrait?.found;
    $("crop").hidden = !found || !$("auto-crop").checked;
    if ($("crop").hidden) return;
    const side = Math.max(found.width, found.height); const [left, top, right, bottom] = found.crop; const style = $("crop").style;
    style.left = `${(100 * (left + (side - found.width) / 2)) / side}%`; style.top = `${(100 * (top + (side - found.height) / 2)) / side}%`;
    style.width = `${(100 * (right - left)) / side}%`; style.height = `${(100 * (bottom - top)) / side}%`;
  }

  // ---- voice
  setUpVoice() {
    const { examples, voices } = this.info;
    $("voice-example").append(...examples.audio.map((name, number) => new Option(`Example ${number + 1} (${name})`, name)));
    $("voice-name").append(...voices.map((voice) => new Option(voice, voice, voice === "en-us", voice === "en-us")));
    if (!voices.length) document.querySelector('[name="voice-kind"][value="text"]').closest("label").hidden = true;
    const show = () => {
      const kind = this.voiceKind();
      for (const pane of document.querySelectorAll("[data-voice]")) pane.hidden = pane.dataset.voice !== kind;
      const file = kind === "upload" ? $("voice-file").files[0] : kind === "record" ? this.recording : null;
      $("voice-audio").hidden = kind === "text" || (kind !== "example" && !file);
      if (kind === "example" && $("voice-example").value) $("voice-audio").src = example("audio", $("voice-example").value);
      else if (file) $("voice-audio").src = URL.createObjectURL(file);
    };
    this.showVoice = show;
    for (const radio of document.getElementsByName("voice-kind")) radio.addEventListener("change", show);
    $("voice-example").addEventListener("change", show); $("voice-file").addEventListener("change", show);
    $("record").addEventListener("click", () => (this.microphone ? this.stopRecording() : this.startRecording()));
    show();
  }

  async startRecording() {
    const microphone = new Microphone(); const pieces = [];
    try { await microphone.open((pcm, level) => { pieces.push(pcm); $("record-level").value = level; $("record-time").textContent = `${(pieces.length * 0.04).toFixed(1)} s`; }); } catch (error) { $("record-time").textContent = `No microphone: ${error.message}`; return; }
    this.microphone = microphone; this.pieces = pieces; $("record").textContent = "■ Stop"; $("record").setAttribute("aria-pressed", "true");
  }

  stopRecording() {
    const { rate } = this.microphone; this.microphone.close(); this.microphone = null;
    this.recording = new File([toWav(this.pieces, rate)], "recording.wav", { type: "audio/wav" });
    $("record").textContent = "● Record"; $("record").setAttribute("aria-pressed", "false"); $("record-level").value = 0; this.showVoice();
  }

  voiceKind() { return document.querySelector('[name="voice-kind"]:checked').value; }

  // ---- motion
  setUpMotion() {
    $("motion-example").append(...this.info.examples.motion.map((name) => new Option(name, name)));
    const motion = this.info.options.find(({ name }) => name === "motion");
    if (motion?.choices.includes("natural") && this.info.natural_motion) {
      document.querySelector("[data-natural]").hidden = false; document.querySelector('[name="motion-kind"][value="natural"]').checked = true;
    }
    for (const radio of document.getElementsByName("motion-kind")) radio.addEventListener("change", () => {
      for (const pane of document.querySelectorAll("[data-motion]")) pane.hidden = pane.dataset.motion !== this.motionKind();
    });
  }

  motionKind() { return document.querySelector('[name="motion-kind"]:checked').value; }

  motionValues() {
    const kind = this.motionKind(); const strategy = $("option-retarget_strategy")?.value;
    if (kind === "still" || kind === "natural") return this.info.options.some(({ name }) => name === "motion") ? { motion: kind } : {};
    const values = kind === "example" ? { motion_example: $("motion-example").value } : { driving_video: $("motion-file").files[0] };
    if (!strategy) values.retarget_strategy = "offset_retarget"; // the driving face is another person's
    return values;
  }

  // The request as a form; throws what is missing.
  form(values) {
    const form = new FormData(); const add = (name, value) => (value instanceof File ? form.append(name, value, name) : form.append(name, String(value)));
    if (!this.portrait) throw new Error("Choose a portrait first.");
    if (this.portrait.file) add("portrait", this.portrait.file); else add("portrait_example", this.portrait.name);
    const kind = this.voiceKind(); const file = kind === "upload" ? $("voice-file").files[0] : this.recording;
    if (this.microphone) this.stopRecording();
    if (kind === "example") add("audio_example", $("voice-example").value);
    else if (kind === "text") { add("text", $("voice-text").value); add("voice", $("voice-name").value); }
    else if (kind === "record" ? this.recording : file) add("audio", kind === "record" ? this.recording : file);
    else throw new Error(kind === "record" ? "Record something first." : "Choose a sound file first.");
    const motion = this.motionValues();
    if ("driving_video" in motion && !motion.driving_video) throw new Error("Choose a video for the head's motion first.");
    const all = { ...motion, ...values, auto_crop: $("auto-crop").checked };
    if (all.retarget_strategy && ["still", "natural"].includes(this.motionKind())) delete all.retarget_strategy;
    for (const [name, value] of Object.entries(all)) if (value !== "" && value !== undefined) add(name, value);
    return form;
  }

  // Portrait and motion for a live stream's first message.
  async live() {
    const values = { ...this.motionValues(), auto_crop: $("auto-crop").checked };
    if (values.motion === "natural") values.motion = "still"; // natural motion needs the whole speech
    if (this.portrait.file) values.portrait = await base64(this.portrait.file); else values.portrait_example = this.portrait.name;
    if (values.driving_video) values.driving_video = await base64(values.driving_video);
    return values;
  }
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader(); reader.onload = () => resolve(reader.result.split(",")[1]); reader.onerror = reject; reader.readAsDataURL(file);
  });
}
