// Calls to the service. Every error has a field and one line.
export class ApiError extends Error {
  constructor(status, field, message) { super(message); this.status = status; this.field = field; }
}

export async function call(path, options = {}) {
  let response;
  try { response = await fetch(path, options); } catch { throw new ApiError(0, null, "the service does not answer"); }
  if (response.ok) return response.status === 204 ? null : response.json();
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error?.field ?? null, body.error?.message ?? `status ${response.status}`);
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Sends a request for a video; waits its turn where the queue is full.
export async function submit(form, onWait = () => {}) {
  for (let tries = 0; ; tries += 1) {
    try { return await call("/v1/videos", { method: "POST", body: form }); } catch (error) {
      if (error.status !== 429 || tries >= 60) throw error;
      onWait();
      await pause(3000);
    }
  }
}

// Follows a job to its end; resolves with its last state.
export function follow(id, onProgress) {
  return new Promise((resolve) => {
    const source = new EventSource(`/v1/videos/${id}/events`);
    const end = (event) => { source.close(); resolve(JSON.parse(event.data)); };
    source.addEventListener("progress", (event) => onProgress(JSON.parse(event.data)));
    for (const state of ["done", "failed", "cancelled"]) source.addEventListener(state, end);
  });
}

export const seconds = (value) => (value < 90 ? `${Math.max(1, Math.round(value))} s` : `${Math.round(value / 60)} min`);
