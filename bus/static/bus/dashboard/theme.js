/* The scheme chosen in the console holds here too. A classic script in the head: it acts before the first paint. */
(function () {
  var chosen = null;
  try {
    chosen = JSON.parse(localStorage.getItem("adminTheme"));
  } catch (error) {
    chosen = null; /* no storage, or something else wrote there: the system's scheme holds */
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
