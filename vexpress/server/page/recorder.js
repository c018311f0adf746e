// The microphone as 16-bit PCM.
export class Microphone {
  async open(onPiece) {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("/static/worklet.js");
    this.node = new AudioWorkletNode(this.context, "pcm", { numberOfOutputs: 1 });
    this.node.port.onmessage = ({ data }) => onPiece(data.pcm, data.level);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
    this.node.connect(this.context.destination); // silent, but keeps the node running
    await this.context.resume();
    this.rate = this.context.sampleRate;
  }

  close() {
    this.node?.disconnect(); this.stream?.getTracks().forEach((track) => track.stop()); this.context?.close();
    this.node = this.stream = this.context = null;
  }
}

export function toWav(pieces, rate) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (place, value) => [...value].forEach((letter, i) => header.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF"); header.setUint32(4, 36 + size, true); text(8, "WAVEfmt "); header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); header.setUint16(22, 1, true); header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true); header.setUint16(32, 2, true); header.setUint16(34, 16, true);
  text(36, "data"); header.setUint32(40, size, true);
  return new Blob([header.buffer, ...pieces], { type: "audio/wav" });
}
