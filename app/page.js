// One function a component of app/page.py: `element` is the component's, `trigger` calls its listener there.
const say = (words) => {
  const note = document.querySelector("#note .note");
  note.textContent = words;
  note.classList.add("wrong");
  note.setAttribute("role", "alert");
};

// Listeners are on the component itself, because Gradio replaces its contents.
const dropArea = (element, trigger) => {
  const send = async (file) => {
    const area = element.querySelector(".drop"), title = area.querySelector("b"), words = title.textContent;
    if (!file) return;
    if (file.size > Number(area.dataset.most)) return say(area.dataset.large);
    title.textContent = "Reading…";
    try {
      const answer = await fetch("image", { method: "POST", body: file });
      const said = await answer.text();
      if (answer.ok) trigger("upload", { image: said });
      else say(said);
    } catch {
      say("the image could not be sent; is the page's server still running?");
    }
    title.textContent = words;
  };
  element.addEventListener("change", (event) => {
    event.stopPropagation();
    send(event.target.files[0]).then(() => { event.target.value = ""; });
  });
  const over = (event, on) => {
    event.preventDefault();
    element.querySelector(".drop").classList.toggle("over", on);
  };
  for (const kind of ["dragenter", "dragover"]) element.addEventListener(kind, (event) => over(event, true));
  element.addEventListener("dragleave", (event) => over(event, false));
  element.addEventListener("drop", (event) => {
    over(event, false);
    send(event.dataTransfer.files[0]);
  });
  element.dataset.ready = "";  // tests wait for it
};

const layerList = (element, trigger) => {
  const keyOf = (target) => Number(target.closest("[data-key]").dataset.key);
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-action]");
    if (!button) return;
    const { action } = button.dataset;
    trigger(action === "split" ? "submit" : "click", { action, key: keyOf(button) });
  });
  element.addEventListener("change", (event) => {
    const row = event.target.closest("[data-key]"), field = (name) => row.querySelector(`[name=${name}]`);
    event.stopPropagation();
    if (event.target.name === "colour") {
      trigger("click", { action: "recolour", key: keyOf(row), colour: event.target.value });
    } else {
      const [x, y] = ["x", "y"].map((name) => Math.round(Number(field(name).value)));
      trigger("click", { action: "move", key: keyOf(row), x, y });
    }
  });
};

const canvas = (element, trigger) => {
  let held = null;
  const way = (event) => [event.clientX - held.x, event.clientY - held.y];
  element.addEventListener("pointerdown", (event) => {
    const board = event.target.closest(".board.movable");
    if (!board || event.button) return;
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    held = { board, ghost: board.querySelector(".ghost"), x: event.clientX, y: event.clientY };
  });
  element.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [x, y] = way(event);
    held.ghost.classList.add("held");
    held.ghost.style.transform = `translate(${x}px, ${y}px)`;
  });
  element.addEventListener("pointercancel", () => {
    held?.ghost.classList.remove("held");
    held = null;
  });
  element.addEventListener("pointerup", (event) => {
    if (!held) return;
    const { board } = held, scale = Number(board.dataset.width) / board.clientWidth;
    const [x, y] = way(event).map((length) => Math.round(length * scale));
    held = null;
    if (x || y) trigger("click", { action: "drag", key: Number(board.dataset.key), x, y });
  });
};
