// Before the first paint: the colours that were chosen, so that nothing flashes.
// The page also works where the browser keeps nothing.
try {
  const theme = JSON.parse(localStorage.getItem("neuralchat.theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // storage is switched off
}
