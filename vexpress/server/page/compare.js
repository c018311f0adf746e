// Two settings side by side, on the same seed.
import { follow, submit } from "./api.js";
import { label } from "./options.js";

const $ = (id) => document.getElementById(id);

export class Compare {
  constructor(info, inputs, options, history, seed) {
    Object.assign(this, { info, inputs, options, history, seed });
    $("compare-option").append(...info.options.filter(({ name }) => options.fields.has(name)).map(({ name }) => new Option(label(name), name, name === "num_inference_steps", name === "num_inference_steps")));
    $("compare-option").addEventListener("change", () => this.suggest());
    $("compare-run").addEventListener("click", () => this.run());
    $("compare-play").addEventListener("click", () => { for (const side of ["a", "b"]) { $(`compare-video-${side}`).currentTime = 0; $(`compare-video-${side}`).play(); } });
    this.suggest();
  }

  suggest() {
    const { option, input } = this.options.fields.get($("compare-option").value);
    const now = option.kind === "bool" ? String(input.checked) : input.value || option.choices?.[0] || option.low || "";
    $("compare-a").value = now;
    if (option.kind === "bool") $("compare-b").value = String(!input.checked);
    else if (option.choices) $("compare-b").value = option.choices.find((choice) => choice !== now);
    else $("compare-b").value = option.multiple ? Number(now) + option.multiple * 4 : option.kind === "int" ? Math.max(option.low ?? 0, Math.floor(now / 2)) : Math.round(now * 150) / 100 || 1;
  }

  async run() {
    const name = $("compare-option").value; $("compare-run").disabled = true; $("compare-play").disabled = true; $("compare-state").textContent = "Starting …";
    const share = { a: 0, b: 0 };
    const one = async (side) => {
      const value = $(`compare-${side}`).value;
      const job = await submit(this.inputs.form({ ...this.options.values(), [name]: value, seed: this.seed() }));
      $(`compare-label-${side}`).textContent = `${label(name)}: ${value}`;
      const last = await follow(job.id, ({ progress }) => { share[side] = progress?.share ?? 0; $("compare-state").textContent = `${Math.round(50 * (share.a + share.b))} %`; });
      if (last.state !== "done") throw new Error(last.error?.message ?? last.state);
      share[side] = 1; $(`compare-video-${side}`).src = `/v1/videos/${job.id}/content`; this.history.add(job.id, `${label(name)}: ${value}`);
    };
    try { await Promise.all([one("a"), one("b")]); $("compare-state").textContent = "Both are ready."; $("compare-play").disabled = false; } catch (error) { $("compare-state").textContent = error.message; }
    $("compare-run").disabled = false;
  }
}
