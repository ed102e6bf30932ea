// The tab "Dead neurons", and the report: pictures of a run, drawn from plain documents.
// A stub: it names the runs and their sites.

export function embedded(docs) {
  return {
    runs: async () => docs.runs,
    overview: async (run) => docs.overview[run],
    table: async (run) => docs.table[run],
    units: async (run, site) => docs.units[run]?.[site],
    unit: async (run, site, unit) => docs.unit[run]?.[site]?.[unit],
  };
}

export async function show(root, source) {
  root.textContent = "";
  for (const run of await source.runs()) {
    for (const site of (await source.overview(run)).sites) {
      const line = document.createElement("p");
      line.textContent = `${run}: ${site.name}`;
      root.append(line);
    }
  }
}

export function render() {
  document.body.textContent = "deadwatch";
}
