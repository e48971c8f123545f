// Copies the text of an answer. The selection stays, for browsers that refuse to copy by script.
element.addEventListener("click", (event) => {
  const button = event.target.closest("article button");
  if (!button) return;
  getSelection().selectAllChildren(button.closest("article").querySelector(".words"));
  button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
});
