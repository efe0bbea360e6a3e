() => {
  const rows = ["helpfulness-0", "helpfulness-1", "safety-0", "safety-1"]; // as the server lists what was marked
  const order = ["helpfulness-0", "safety-0", "helpfulness-1", "safety-1", "better"]; // as one goes through them
  const better = { a: 0, b: 1, t: 2 };
  let item = null, active = 0, ready = false, sent = null;
  const early = []; // keys that came while an item was being drawn
  const find = (id) => document.querySelector(`#${id}`);
  const inputs = (id) => [...(find(id)?.querySelectorAll("input[type=radio]") ?? [])];
  const marked = (id) => inputs(id).find((input) => input.checked)?.value ?? "";
  const press = (id) => (find(id)?.matches("button") ? find(id) : find(id)?.querySelector("button"))?.click();

  const settle = () => { // the marks of the item before are gone: no key is wiped out with them
    const wanted = document.querySelector("[data-item]")?.dataset.marks;
    if (wanted !== undefined && wanted !== [...rows, "better"].map(marked).join()) {
      requestAnimationFrame(settle);
      return;
    }
    ready = true;
    early.splice(0).forEach(act);
  };
  const look = () => { // what is shown now; another item begins at its first row
    const shown = document.querySelector("[data-item]")?.dataset.item ?? null;
    if (shown !== item) { item = shown; active = 0; sent = null; ready = false; settle(); }
    order.forEach((id, place) => find(id)?.classList.toggle("active", place === active));
  };
  const act = (key) => {
    if (/^[1-5]$/.test(key)) {
      if (order[active] === "better") return;
      inputs(order[active])[key - 1]?.click();
      active += 1;
    }
    else if (key in better) inputs("better")[better[key]]?.click();
    else if (key === "arrowup") active = Math.max(0, active - 1);
    else if (key === "arrowdown") active = Math.min(order.length - 1, active + 1);
    else if (key === "backspace") press("back");
    else if (key === "enter") {
      if (order.every(marked)) { // a vote on its way is not sent again, but for one that has failed by then
        const now = (sent = item);
        setTimeout(() => { if (sent === now) sent = null; }, 3000);
      }
      press("save");
    }
    look();
  };

  document.addEventListener("keydown", (event) => {
    look();
    const key = event.key.toLowerCase();
    const known = /^([1-5abt]|arrowup|arrowdown|backspace|enter)$/.test(key);
    const typing = event.target.matches("textarea, input:not([type=radio])");
    if (!known || typing || item === null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "enter" && event.target.closest("button")) return; // the button does it
    event.preventDefault();
    if (event.repeat || sent === item) return; // a key that is held, or one that came too late for this item
    if (ready) act(key); else early.push(key);
  });
  document.addEventListener("input", (event) => { // the name is there again when the page is loaded again
    if (event.target.closest("#name")) localStorage.setItem("tunebook-rater", event.target.value);
  });
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
  look();
  return localStorage.getItem("tunebook-rater") ?? "";
}
