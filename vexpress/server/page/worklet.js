// Gathers the microphone's samples to pieces of about 40 ms of 16-bit PCM.
registerProcessor("pcm", class extends AudioWorkletProcessor {
  constructor() { super(); this.length = Math.round(sampleRate * 0.04); this.pcm = new Int16Array(this.length); this.filled = 0; this.peak = 0; }
  process(inputs) {
    const samples = inputs[0][0];
    if (samples) for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.pcm[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.length) {
        this.port.postMessage({ pcm: this.pcm.buffer, level: this.peak }, [this.pcm.buffer]);
        this.pcm = new Int16Array(this.length); this.filled = 0; this.peak = 0;
      }
    }
    return true;
  }
});
