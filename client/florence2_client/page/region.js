// Draws a box on the image with mouse, pen or finger. The value is "x1,y1,x2,y2" in pixels of the image, or "".
// The image shown is a preview: `width` and `height` are those of the image itself.
const find = (selector) => element.querySelector(selector);
let start = null;

const show = (x1, y1, x2, y2) => {
  const { width, height } = props;
  const sides = { left: x1 / width, top: y1 / height, width: (x2 - x1) / width, height: (y2 - y1) / height };
  for (const [side, part] of Object.entries(sides)) find(".box").style[side] = `${100 * part}%`;
  find(".box").hidden = false;
};
const showValue = () => {
  const numbers = (props.value || "").split(",").map(Number);
  if (props.image && props.drawable && numbers.length === 4 && numbers.every(Number.isFinite)) show(...numbers);
  else if (find(".box")) find(".box").hidden = true;
};
const at = (event) => {
  const frame = find("img").getBoundingClientRect();
  const within = (part, size) => Math.round(Math.min(Math.max(part, 0), 1) * size);
  return [
    within((event.clientX - frame.left) / frame.width, props.width),
    within((event.clientY - frame.top) / frame.height, props.height),
  ];
};
const corners = (event) => {
  const [x, y] = at(event);
  return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
};

element.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0 || !props.drawable || !event.target.closest(".stage")) return;
  event.preventDefault();
  start = at(event);
  find(".stage").setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => start && event.isPrimary && show(...corners(event)));
element.addEventListener("pointerup", (event) => {
  if (!start || !event.isPrimary) return;
  const box = corners(event);
  start = null;
  if (box[0] === box[2] || box[1] === box[3]) return showValue(); // a click draws nothing
  props.value = box.join(",");
  trigger("input");
});
element.addEventListener("pointercancel", () => {
  start = null;
  showValue();
});
element.addEventListener("load", showValue, true); // of the image
watch(["value", "image", "drawable"], showValue);
