// This session's results, as this browser tab remembers them.
import { call } from "./api.js";

const KEY = "vexpress-history";
const $ = (id) => document.getElementById(id);

export class History {
  constructor() { this.jobs = JSON.parse(sessionStorage.getItem(KEY) ?? "[]"); this.render(); }

  add(id, text) { this.jobs.unshift({ id, text, time: new Date().toLocaleTimeString() }); this.keep(); }

  keep() { sessionStorage.setItem(KEY, JSON.stringify(this.jobs.slice(0, 50))); this.render(); }

  render() {
    $("history-empty").hidden = this.jobs.length > 0;
    $("history").replaceChildren(...this.jobs.map((job) => {
      const item = document.createElement("li"); item.className = "card";
      const video = Object.assign(document.createElement("video"), { src: `/v1/videos/${job.id}/content`, controls: true, preload: "metadata", playsInline: true });
      video.setAttribute("aria-label", `Video of ${job.time}`);
      video.addEventListener("error", () => { text.textContent = "Deleted: its time is over."; video.remove(); }, { once: true });
      const text = Object.assign(document.createElement("p"), { textContent: `${job.time} · ${job.text}` });
      const row = Object.assign(document.createElement("div"), { className: "row" });
      const save = Object.assign(document.createElement("a"), { className: "button", href: video.src, download: `talking-${job.id.slice(0, 8)}.mp4`, textContent: "Download" });
      const remove = Object.assign(document.createElement("button"), { textContent: "Delete" });
      remove.addEventListener("click", async () => { await call(`/v1/videos/${job.id}`, { method: "DELETE" }).catch(() => {}); this.jobs = this.jobs.filter(({ id }) => id !== job.id); this.keep(); });
      row.append(save, remove); item.append(video, text, row);
      return item;
    }));
  }
}
