// Pictures and downloads of the service.

import { el, problemBox, say } from "./dom.js";
import { blob } from "./service.js";

export function picture(path, description, signal) {
  const figure = el("figure", { tabindex: "0", "aria-label": description });
  blob(path).then((data) => {
    const url = URL.createObjectURL(data);
    signal.addEventListener("abort", () => URL.revokeObjectURL(url));
    figure.replaceChildren(el("img", { src: url, alt: description }));
  }).catch((error) => figure.replaceChildren(problemBox(error)));
  return figure;
}

// files: [text of the button, path, ending]
export function saveButtons(root, id, files) {
  const save = (path, name) => async () => {
    try {
      const url = URL.createObjectURL(await blob(path));
      el("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    } catch (error) {
      say(error.message);
    }
  };
  return el("div", { class: "row" }, files.map(([text, path, ending]) =>
    el("button", { onclick: save(root + path, `${id}.${ending}`) }, text)));
}

export function naturalSize(place) {
  const size = el("input", { type: "checkbox", onchange: () => place.querySelector("figure").classList.toggle("natural", size.checked) });
  return el("label", { class: "check" }, size, "Full size");
}
