// Where the page is: all of its state is in the address, so that a link shows the same.

export const query = () => new URLSearchParams(location.search);

export const param = (name, otherwise = "") => query().get(name) ?? otherwise;

// Changes the address; `null` takes a part away. Listeners redraw.
export function set(changes, push = false) {
  const now = query();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "" || value === undefined) now.delete(name);
    else now.set(name, value);
  }
  const search = now.toString();
  const address = `${location.pathname}${search ? `?${search}` : ""}`;
  if (address !== location.pathname + location.search) {
    history[push ? "pushState" : "replaceState"](null, "", address);
    dispatchEvent(new Event("place"));
  }
}

addEventListener("popstate", () => dispatchEvent(new Event("place")));
