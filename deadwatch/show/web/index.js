// The tab "Dead neurons", and the report: pictures of a run, drawn from plain documents.

export function render() {
  document.body.textContent = "deadwatch";
}
