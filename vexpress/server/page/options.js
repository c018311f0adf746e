// The form of options, made of the service's table.
const HIDDEN = ["seed", "auto_crop", "motion", "kps_fps", "audio_track"];
const $ = (id) => document.getElementById(id);
export const label = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ").replace(/^Num /, "Number of ").replace("Fps", "Frames per second");

export class Options {
  constructor(info, initial) {
    this.table = info.options; this.presets = info.presets; this.initial = initial; this.fields = new Map();
    for (const option of this.table.filter(({ name }) => !HIDDEN.includes(name))) this.add(option);
    $("preset").append(new Option("Defaults of the model", ""), ...Object.keys(this.presets).map((name) => new Option(label(name), name)));
    $("preset").addEventListener("change", () => this.reset($("preset").value));
    $("reset").addEventListener("click", () => { $("preset").value = ""; this.reset(""); });
    this.reset("");
  }

  add(option) {
    const box = document.createElement("label"); const name = document.createElement("span"); const help = document.createElement("small");
    name.textContent = label(option.name) + (option.unit && option.unit.length < 4 ? ` (${option.unit})` : "");
    help.textContent = option.help; help.id = `help-${option.name}`;
    let input;
    if (option.choices) { input = document.createElement("select"); if (option.optional) input.append(new Option("automatic", "")); input.append(...option.choices.map((choice) => new Option(choice, choice))); } else {
      input = document.createElement("input");
      if (option.kind === "bool") input.type = "checkbox"; else if (option.kind !== "str") {
        input.type = "number"; input.step = option.multiple ?? (option.kind === "int" ? 1 : "any");
        if (option.low !== null) input.min = option.low; if (option.high !== null) input.max = option.high;
        if (option.optional) input.placeholder = "automatic";
      }
    }
    input.id = `option-${option.name}`; input.setAttribute("aria-describedby", help.id);
    box.className = option.kind === "bool" ? "check wide" : "field";
    if (option.kind === "bool") box.append(input, name); else box.append(name, input);
    if (option.help.length > 70) box.classList.add("wide");
    const outer = document.createElement("div"); outer.className = box.classList.contains("wide") ? "wide" : ""; outer.append(box, help);
    help.className = "hint"; $("options").append(outer);
    this.fields.set(option.name, { option, input });
  }

  reset(preset) {
    const values = { ...this.initial, ...(this.presets[preset] ?? {}) };
    for (const [name, { option, input }] of this.fields) {
      const value = name in values ? values[name] : option.default;
      if (option.kind === "bool") input.checked = value; else input.value = value ?? "";
    }
  }

  // Values that differ from the service's defaults.
  values() {
    const changed = {};
    for (const [name, { option, input }] of this.fields) {
      const value = option.kind === "bool" ? input.checked : input.value;
      if (option.kind === "bool" ? value !== option.default : String(value) !== String(option.default ?? "")) changed[name] = value;
    }
    return changed;
  }

  // The same as JSON's types.
  typed(values = this.values()) {
    const kinds = Object.fromEntries(this.table.map((option) => [option.name, option.kind]));
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, ["int", "float"].includes(kinds[name]) ? Number(value) : value]));
  }
}
