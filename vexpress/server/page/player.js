// Plays fragmented MP4 while it comes, by Media Source Extensions.
export const canStream = (mime) => "MediaSource" in window && MediaSource.isTypeSupported(mime);

export class StreamPlayer {
  constructor(video, mime, { live = false } = {}) {
    this.video = video; this.live = live; this.waiting = []; this.ended = false; this.bytes = 0;
    this.source = new MediaSource();
    this.url = URL.createObjectURL(this.source);
    video.src = this.url;
    this.source.addEventListener("sourceopen", () => {
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.next());
      this.next();
    }, { once: true });
  }

  push(part) { this.waiting.push(new Uint8Array(part)); this.bytes += part.byteLength; this.next(); }

  end() { this.ended = true; this.next(); }

  next() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    if (this.live) this.keepUp();
    if (this.buffer.updating) return;
    if (this.waiting.length) {
      this.buffer.appendBuffer(join(this.waiting.splice(0)));
    } else if (this.ended) this.source.endOfStream();
  }

  // Stays near the newest frame, and forgets what was shown.
  keepUp() {
    const { video } = this; const ranges = video.buffered;
    if (!ranges.length) return;
    const newest = ranges.end(ranges.length - 1); const behind = newest - video.currentTime;
    if (behind > 1.2) video.currentTime = newest - 0.15;
    video.playbackRate = behind > 0.35 ? 1.08 : 1;
    if (video.currentTime - ranges.start(0) > 30) this.buffer.remove(0, video.currentTime - 10);
  }

  close() { URL.revokeObjectURL(this.url); }
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let place = 0;
  for (const part of parts) { whole.set(part, place); place += part.byteLength; }
  return whole;
}

// Plays a job's stream; resolves when all of it has come.
export async function playStream(video, mime, url, signal) {
  const player = new StreamPlayer(video, mime);
  const response = await fetch(url, { signal });
  if (!response.ok) return player;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    player.push(value);
  }
  player.end();
  return player;
}
